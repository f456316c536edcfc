"""Live audio: what comes in is coded chunk by chunk as it comes.

FocalCodec-Stream, section 2. A session takes any number of samples (or
tokens) at a time, buffers them to the model's chunk and gives what is ready.
All that comes out of a session, put together, is what one offline pass of the
same causal model gives. For many streams at once see
:mod:`speechbrain_focalcodec.streaming.pool`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from speechbrain_focalcodec.errors import StreamError, abridge
from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.streaming.direction import (
    Direction,
    decoding,
    encoding,
)

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec
    from speechbrain_focalcodec.voice.reference import VoiceReference

__all__ = [
    "StreamingDecoder",
    "StreamingEncoder",
    "StreamingResynthesizer",
    "StreamingVoiceConverter",
]

# Seconds of a long push that are coded at once.
SLICE = 30.0


class Stream(ABC):
    """A session: `push` what comes, then `flush` at the end.

    Sessions hold their own state, and many can share a model. To copy one,
    give its :meth:`state_dict` to a new one; a pickle holds the model, too. A
    failure while a chunk is coded ends the stream: what had been carried is
    no longer whole.
    """

    # What the input goes through, one after the other.
    ways: list["OneWay"]
    # What the session was made with.
    _made_with: tuple[Any, ...]

    _pushed = _given = 0

    def count(self, pushed: int, given: int) -> None:
        """Note what went in and came out.

        Arguments
        ---------
        pushed, given : int
            Steps.
        """
        self._pushed += pushed
        self._given += given

    def __reduce__(self):
        return type(self), self._made_with, self.state_dict()

    def __setstate__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.load_state_dict(tensors)

    @abstractmethod
    def push(self, x: torch.Tensor) -> torch.Tensor:
        """Take what has come and give what is ready.

        Arguments
        ---------
        x : torch.Tensor
            Input [T], of any length, also 0.

        Returns
        -------
        torch.Tensor
            Output [N], maybe of length 0, on the model's device.
        """

    @abstractmethod
    def flush(self) -> torch.Tensor:
        """End the stream.

        Returns
        -------
        torch.Tensor
            Output [N] of the last, incomplete chunk, maybe of length 0.
        """

    @abstractmethod
    def reset(self) -> None:
        """Start a new stream."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that the stream carries, in bounded memory.

        Returns
        -------
        dict
            Tensors by name, copies, as `safetensors.torch.save_file` takes
            them.
        """

    @abstractmethod
    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on where another session of the same model was.

        Arguments
        ---------
        tensors : dict
            From :meth:`state_dict`.

        Raises
        ------
        StreamError
            If a tensor is missing, unknown or does not fit; the session
            stays as it was.
        """

    @abstractmethod
    def to(self, device: str | torch.device) -> "Stream":
        """Follow the model to another device.

        Arguments
        ---------
        device : str or torch.device
            Where the model is now.

        Returns
        -------
        Stream
            Itself.
        """


@contextmanager
def ended_by_failure(ways: Iterable["OneWay"]) -> Iterator[None]:
    """End streams in whose chunks something fails.

    Arguments
    ---------
    ways : iterable of OneWay
        The directions of the streams that are coded.

    Returns
    -------
    context manager
        The failure itself is passed on.
    """
    try:
        yield
    except BaseException:
        for way in ways:
            way.failed = True
        raise


class OneWay(Stream):
    """A session in one direction.

    Arguments
    ---------
    direction : Direction
        Encoding or decoding with a model.
    """

    def __init__(self, direction: Direction):
        self.direction = direction
        self.chunk_length = direction.chunk_length
        self.ways = [self]
        self.reset()

    def reset(self) -> None:
        direction = self.direction
        self._pending = torch.empty(
            0, dtype=direction.dtype, device=direction.device
        )
        self.state = StreamState()
        self.started = False
        self.ended = False
        self.failed = False

    def push(self, x: torch.Tensor) -> torch.Tensor:
        x = self.checked(x)
        with ended_by_failure(self.ways):
            return self.code(x)

    def code(self, x: torch.Tensor) -> torch.Tensor:
        """Code what :meth:`checked` gave, as far as chunks are full."""
        self.feed(x)
        return self._run(self.take(len(self._pending) // self.chunk_length))

    def check_whole(self) -> None:
        """Refuse to go on after a failure."""
        if self.failed:
            raise StreamError(
                "the stream was ended by a failure inside a chunk; reset() "
                "starts a new one"
            )

    def checked(self, x: torch.Tensor) -> torch.Tensor:
        """What may be fed, on the model's device, or an error."""
        self.check_whole()
        if self.ended:
            raise StreamError(
                "the stream was ended by flush(); reset() starts a new one"
            )
        return self.direction.check(x).detach().to(self._pending)

    def feed(self, x: torch.Tensor) -> None:
        """Add to what waits for a chunk to be full."""
        # A copy: the caller may use its buffer again.
        self._pending = torch.cat([self._pending, x])

    @property
    def ready(self) -> bool:
        """Whether a chunk is full."""
        return len(self._pending) >= self.chunk_length

    def take(self, chunks: int) -> torch.Tensor:
        """Remove full chunks from what waits."""
        size = chunks * self.chunk_length
        # A copy: a view would keep all that was pushed.
        x, self._pending = self._pending[:size], self._pending[size:].clone()
        self.started = self.started or bool(chunks)
        return x

    def flush(self) -> torch.Tensor:
        self.check_whole()
        if self.ended:
            return self.direction.empty()
        self.ended = True
        pending, self._pending = self._pending, self._pending[:0]
        self.started = self.started or bool(len(pending))
        with ended_by_failure(self.ways):
            return self._run(pending)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        """Code whole chunks, or the last one."""
        if not len(x):
            return self.direction.empty()
        rate = self.direction.codec.token_rate
        if self.direction.dtype.is_floating_point:
            rate *= self.direction.codec.hop_length
        size = int(SLICE * rate)
        size = max(size // self.chunk_length, 1) * self.chunk_length
        parts = [
            self.direction.run(part[None], self.state)[0]
            for part in x.split(size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def state_dict(self) -> dict[str, torch.Tensor]:
        self.check_whole()
        return {
            "pending": self._pending.clone(),
            "ended": torch.tensor([self.ended]),
            "started": torch.tensor([self.started]),
            **{
                f"state.{name}": tensor.clone()
                for name, tensor in self.state.tensors().items()
                if name != "ended"
            },
        }

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        self.install(self.parse(tensors))

    def parse(self, tensors: dict[str, torch.Tensor]) -> "_Carried":
        """Check what :meth:`state_dict` gave."""
        tensors = dict(tensors)
        pending = _take(tensors, "pending", self.direction.dtype)
        if len(pending) >= self.chunk_length:
            raise StreamError(
                f"state: pending holds {len(pending)} steps, a chunk of this "
                f"model {self.chunk_length}"
            )
        ended = bool(_take(tensors, "ended", torch.bool, 1))
        started = bool(_take(tensors, "started", torch.bool, 1))
        state = StreamState()
        try:
            pending = self.direction.check(pending)
            state.restore(
                _strip("state.", tensors),
                self.direction.template() if started else StreamState(),
            )
        except ValueError as error:
            message = str(error).removeprefix("state: ")
            raise StreamError(f"state: {message}") from error
        pending = pending.to(self._pending, copy=True)
        return _Carried(pending, state, started, ended)

    def install(self, carried: "_Carried") -> None:
        """Go on with what :meth:`parse` gave."""
        self._pending, self.state = carried.pending, carried.state
        self.started, self.ended = carried.started, carried.ended
        self.failed = False

    def to(self, device: str | torch.device) -> "Stream":
        self._pending = self._pending.to(device)
        self.state.to(device)
        return self


@dataclass
class _Carried:
    """All that a session in one direction carries."""

    pending: torch.Tensor
    state: StreamState
    started: bool
    ended: bool


def _take(
    tensors: dict[str, torch.Tensor],
    name: str,
    dtype: torch.dtype,
    length: int | None = None,
) -> torch.Tensor:
    """Remove a tensor [T] that must be there."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise StreamError(f"state: misses {name}")
    if (
        tensor.dtype != dtype
        or tensor.ndim != 1
        or length not in (None, len(tensor))
    ):
        raise StreamError(
            f"state: {name} is {tensor.dtype} {list(tensor.shape)}, which "
            "does not fit this model"
        )
    return tensor


def _strip(
    prefix: str, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Names without a prefix that all of them must have."""
    unknown = [name for name in tensors if not name.startswith(prefix)]
    if unknown:
        raise StreamError(
            f"state: has unknown {abridge(sorted(unknown))}; was it saved by "
            "another kind of session?"
        )
    return {name.removeprefix(prefix): x for name, x in tensors.items()}


class StreamingEncoder(OneWay):
    """Samples to tokens, as they come.

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
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> encoder = StreamingEncoder(codec)
    >>> [len(encoder.push(torch.zeros(1000))) for _ in range(3)]
    [0, 4, 4]
    >>> len(encoder.flush())
    2
    """

    def __init__(self, codec: "FocalCodec"):
        super().__init__(encoding(codec))
        self._made_with = (codec,)


class StreamingDecoder(OneWay):
    """Tokens to samples, as they come.

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
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> decoder = StreamingDecoder(codec)
    >>> [len(decoder.push(torch.zeros(3).long())) for _ in range(3)]
    [0, 1920, 1920]
    >>> len(decoder.flush())
    480
    """

    def __init__(self, codec: "FocalCodec"):
        super().__init__(decoding(codec))
        self._made_with = (codec,)


class StreamingResynthesizer(Stream):
    """Samples to tokens and back, as they come.

    What has been given after `flush` lasts exactly as long as what was
    pushed.

    Arguments
    ---------
    codec : FocalCodec
        A causal model. It is shared, not copied.
    match : callable, optional
        What is done to quantized features [B, T, C] before they are decoded.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> stream = StreamingResynthesizer(codec)
    >>> len(stream.push(torch.zeros(1300))), len(stream.flush())
    (1920, 30)
    """

    def __init__(
        self,
        codec: "FocalCodec",
        match: Callable[..., torch.Tensor] | None = None,
    ):
        self.codec = codec
        self.encoder = OneWay(encoding(codec))
        self.decoder = OneWay(decoding(codec, match))
        self.ways = [self.encoder, self.decoder]
        self.chunk_length = self.encoder.chunk_length
        self._made_with = (codec, match)

    @property
    def ended(self) -> bool:
        """Whether the stream was flushed."""
        return self.encoder.ended

    def push(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder.checked(x)
        with ended_by_failure(self.ways):
            sig = self.decoder.push(self.encoder.code(x))
        self.count(len(x), len(sig))
        return sig

    def flush(self) -> torch.Tensor:
        if self.ended:
            return self.decoder.flush()
        with ended_by_failure(self.ways):
            tail = self.decoder.push(self.encoder.flush())
            tail = torch.cat([tail, self.decoder.flush()])
        wanted = self.codec.output_num_samples(self._pushed)
        return tail[: wanted - self._given]

    def reset(self) -> None:
        self.encoder.reset()
        self.decoder.reset()
        self._pushed = self._given = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            "counts": torch.tensor([self._pushed, self._given]),
            **{
                f"{name}.{key}": tensor
                for name, part in (
                    ("encoder", self.encoder),
                    ("decoder", self.decoder),
                )
                for key, tensor in part.state_dict().items()
            },
        }

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        tensors = dict(tensors)
        counts = _take(tensors, "counts", torch.int64, 2)
        pushed, given = counts.tolist()
        wanted = int(self.codec.output_num_samples(max(pushed, 0)))
        if pushed < 0 or not 0 <= given <= wanted:
            raise StreamError(
                f"state: counts say that {pushed} samples gave {given}"
            )
        encoded = {k: x for k, x in tensors.items() if k.startswith("encoder.")}
        decoded = {k: x for k, x in tensors.items() if k not in encoded}
        # Both are checked before one is changed.
        encoder = self.encoder.parse(_strip("encoder.", encoded))
        decoder = self.decoder.parse(_strip("decoder.", decoded))
        self.encoder.install(encoder)
        self.decoder.install(decoder)
        self._pushed, self._given = pushed, given

    def to(self, device: str | torch.device) -> "Stream":
        self.encoder.to(device)
        self.decoder.to(device)
        return self


class StreamingVoiceConverter(StreamingResynthesizer):
    """What comes in, in another speaker's voice.

    Arguments
    ---------
    codec : FocalCodec
        A causal model. It is shared, not copied.
    reference : VoiceReference
        Speech of the speaker, prepared with the same model. It is brought
        into the memory of the model's device, as all of it is searched for
        each chunk: a few minutes are enough.
    k : int
        Frames of the reference to average for each frame.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    VoiceError
        If another model made the reference, or it has fewer than `k` frames.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> from speechbrain_focalcodec.voice.reference import VoiceReference
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> reference = VoiceReference.from_sigs(codec, [torch.randn(16000)])
    >>> stream = StreamingVoiceConverter(codec, reference)
    >>> len(stream.push(torch.randn(2560)))
    3840
    """

    def __init__(
        self, codec: "FocalCodec", reference: "VoiceReference", k: int = 4
    ):
        device = codec.device
        self._reference, self._k = reference.to(device), k
        super().__init__(codec, self._reference.converter(codec, k))
        self._made_with = (codec, self._reference, k)

    def to(self, device: str | torch.device) -> "Stream":
        self._reference = self._reference.to(device)
        self._made_with = (self.codec, self._reference, self._k)
        convert = self._reference.converter(self.codec, self._k)
        self.decoder.direction = decoding(self.codec, convert)
        return super().to(device)
