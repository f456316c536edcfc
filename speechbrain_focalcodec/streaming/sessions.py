"""Live audio in torch: sessions that code their input chunk by chunk.

:mod:`speechbrain_focalcodec.streaming.base` has the logic. To code many
streams in one batch see :mod:`speechbrain_focalcodec.streaming.pool`.
"""

from collections.abc import Callable

import torch

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.streaming.base import OneWay, RoundTrip, Session
from speechbrain_focalcodec.streaming.direction import decoding, encoding
from speechbrain_focalcodec.voice.reference import VoiceReference

__all__ = [
    "Stream",
    "StreamingDecoder",
    "StreamingEncoder",
    "StreamingResynthesizer",
    "StreamingVoiceConverter",
]


class Stream(Session[torch.Tensor]):
    """A session in torch. Its tensors are on the model's device."""

    def to(self, device: str | torch.device) -> "Stream":
        """Move the state to the device to which the model was moved.

        Arguments
        ---------
        device : str or torch.device
            Device of the model.

        Returns
        -------
        Stream
            Itself.
        """
        for way in self.ways:
            way.pending = way.pending.to(device)
            way.state.to(device)
        return self


class StreamingEncoder(OneWay[torch.Tensor], Stream):
    """Encodes samples to tokens as they arrive.

    Arguments
    ---------
    codec : FocalCodec
        A causal model. It is shared, not copied.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> encoder = StreamingEncoder(codec)
    >>> [len(encoder.push(torch.zeros(1000))) for _ in range(3)]
    [0, 4, 4]
    >>> len(encoder.flush())
    2
    """

    def __init__(self, codec: FocalCodec):
        super().__init__(encoding(codec))


class StreamingDecoder(OneWay[torch.Tensor], Stream):
    """Decodes tokens to samples as they arrive.

    Arguments
    ---------
    codec : FocalCodec
        A causal model. It is shared, not copied.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> decoder = StreamingDecoder(codec)
    >>> [len(decoder.push(torch.zeros(3).long())) for _ in range(3)]
    [0, 1920, 1920]
    >>> len(decoder.flush())
    480
    """

    def __init__(self, codec: FocalCodec):
        super().__init__(decoding(codec))


class StreamingResynthesizer(RoundTrip[torch.Tensor], Stream):
    """Encodes and decodes samples as they arrive.

    The outputs up to `flush` last exactly as long as the input.

    Arguments
    ---------
    codec : FocalCodec
        A causal model. It is shared, not copied.
    match : callable, optional
        Applied to quantized features [B, T, C] before they are decoded.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> stream = StreamingResynthesizer(codec)
    >>> len(stream.push(torch.zeros(1300))), len(stream.flush())
    (1920, 30)
    """

    def __init__(
        self,
        codec: FocalCodec,
        match: Callable[..., torch.Tensor] | None = None,
    ):
        super().__init__(encoding(codec), decoding(codec, match))
        self._made_with = (codec, match)


class StreamingVoiceConverter(StreamingResynthesizer):
    """Converts speech to another speaker's voice as it arrives.

    Arguments
    ---------
    codec : FocalCodec
        A causal model. It is shared, not copied.
    reference : VoiceReference
        Speech of the speaker, prepared with the same model. It is moved to
        the model's device. Each chunk is compared with all of it, so a few
        minutes are enough.
    k : int
        Number of nearest frames of the reference to average for each frame.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    VoiceError
        If another model made the reference, or it has fewer than `k` frames.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> reference = VoiceReference.from_sigs(codec, [torch.randn(16000)])
    >>> stream = StreamingVoiceConverter(codec, reference)
    >>> len(stream.push(torch.randn(2560)))
    3840
    """

    def __init__(
        self, codec: FocalCodec, reference: VoiceReference, k: int = 4
    ):
        reference = reference.to(codec.device)
        super().__init__(codec, reference.converter(codec, k))
        self._made_with = (codec, reference, k)

    def to(self, device: str | torch.device) -> "Stream":
        _, reference, k = self._made_with
        reference = reference.to(device)
        self._made_with = (self.codec, reference, k)
        convert = reference.converter(self.codec, k)
        self.decoder.direction = decoding(self.codec, convert)
        return super().to(device)
