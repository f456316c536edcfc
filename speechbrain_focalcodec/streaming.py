"""Live audio: what comes in is coded chunk by chunk as it comes.

FocalCodec-Stream, section 2. A session takes any number of samples (or
tokens) at a time, buffers them to the model's chunk and gives what is ready.
All that comes out of a session, put together, is what one offline pass of the
same causal model gives. For many streams at once see
:mod:`speechbrain_focalcodec.stream_pool`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from speechbrain_focalcodec.audio_gate import check_sig
from speechbrain_focalcodec.checkpoint import offline_message
from speechbrain_focalcodec.errors import StreamError
from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.modules.ring import Ring

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec
    from speechbrain_focalcodec.voice import VoiceReference

__all__ = [
    "Direction",
    "StreamingDecoder",
    "StreamingEncoder",
    "StreamingResynthesizer",
    "StreamingVoiceConverter",
    "decoding",
    "encoding",
]

# A stage of the codec, and whether it carries state.
Stage = tuple[Callable[..., Any], bool]

# Seconds of a long push that are coded at once.
SLICE = 30.0


class Direction:
    """One way through a causal model: encoding or decoding.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.
    chunk_length : int
        Input steps of a chunk: samples or tokens.
    check : callable
        From what a caller gave to a tensor [T], or an error.
    stages : list of (callable, bool)
        Stages of the codec, and which of them carry state.
    dtypes : tuple of torch.dtype
        Of the input and of the output.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> encoding(codec).chunk_length, decoding(codec).chunk_length
    (1280, 4)
    """

    def __init__(
        self,
        codec: "FocalCodec",
        chunk_length: int,
        check: Callable[[Any], torch.Tensor],
        stages: list[Stage],
        dtypes: tuple[torch.dtype, torch.dtype],
    ):
        self.codec = codec
        self.chunk_length = chunk_length
        self.check = check
        self.stages = stages
        self.dtype, self.output_dtype = dtypes

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.codec.parameters()).device

    @torch.no_grad()
    def run(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """Code some chunks.

        Arguments
        ---------
        x : torch.Tensor
            Samples or tokens [B, T], a multiple of `chunk_length`; a last
            call may have any length.
        state : StreamState
            Carried from call to call.

        Returns
        -------
        torch.Tensor
            Tokens or samples [B, N].
        """
        for stage, carries in self.stages:
            x = stage(x, state=state) if carries else stage(x)
        return x

    def step(
        self, x: torch.Tensor, lengths: torch.Tensor, state: StreamState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Code one chunk of a fixed size, for export.

        Arguments
        ---------
        x : torch.Tensor
            Samples or tokens [B, chunk_length].
        lengths : torch.Tensor
            How many of them are some, int64 [B]; fewer in a last chunk.
        state : StreamState
            Carried from call to call.

        Returns
        -------
        y : torch.Tensor
            Tokens or samples [B, N].
        lengths : torch.Tensor
            How many of them are some, int64 [B].
        """
        for stage, carries in self.stages:
            if carries:
                x, lengths = stage(x, lengths, state=state)
            else:
                x = stage(x)
        return x, lengths

    def start(self) -> dict[str, torch.Tensor]:
        """What a :class:`StepState` starts with.

        Returns
        -------
        dict
            Zeros [1, ...] by name.
        """
        return {
            name: kept.whole() if isinstance(kept, Ring) else kept.zero_()
            for name, kept in self.template().table.items()
        }

    def empty(self) -> torch.Tensor:
        """What nothing gives.

        Returns
        -------
        torch.Tensor
            [0].
        """
        return torch.empty(0, dtype=self.output_dtype, device=self.device)

    def template(self) -> StreamState:
        """A state as it is after a chunk: names, shapes and types.

        Returns
        -------
        StreamState
            Of one stream.
        """
        state = StreamState()
        chunk = torch.zeros(1, self.chunk_length, dtype=self.dtype)
        self.run(chunk.to(self.device), state)
        return state


def encoding(codec: "FocalCodec") -> Direction:
    """From samples to tokens.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.

    Returns
    -------
    Direction
        Of chunks of `codec.chunk_length` samples.

    Raises
    ------
    StreamError
        If the model is an offline one.
    """
    chunk_length = _check_causal(codec)

    def check(sig: Any) -> torch.Tensor:
        sig = torch.as_tensor(sig)
        if sig.ndim == 1 and sig.is_floating_point() and not len(sig):
            return sig
        check_sig(sig, ndim=1)
        return sig

    stages: list[Stage] = [
        (codec.sig_to_feats, True),
        (codec.feats_to_lats, True),
        (codec.lats_to_toks, False),
    ]
    dtypes = torch.float32, torch.int64
    return Direction(codec, chunk_length, check, stages, dtypes)


def decoding(
    codec: "FocalCodec",
    match: Callable[..., torch.Tensor] | None = None,
) -> Direction:
    """From tokens to samples.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.
    match : callable, optional
        What is done to quantized features [B, T, C] before they are decoded.

    Returns
    -------
    Direction
        Of chunks as long as those of the encoder.

    Raises
    ------
    StreamError
        If the model is an offline one.
    """
    chunk_length = _check_causal(codec) // codec.hop_length

    def check(toks: Any) -> torch.Tensor:
        toks = torch.as_tensor(toks)
        if toks.ndim != 1:
            raise ValueError(
                f"toks: must be [N], but its shape is {list(toks.shape)}"
            )
        if not len(toks):
            return toks.long()
        return codec.check_toks(toks[None])[0]

    stages: list[Stage] = [
        (codec.quantizer.toks_to_codes, False),
        (codec.codes_to_qfeats, True),
        *([] if match is None else [(match, False)]),
        (codec.feats_to_sig, True),
    ]
    dtypes = torch.int64, torch.float32
    return Direction(codec, chunk_length, check, stages, dtypes)


def _check_causal(codec: "FocalCodec") -> int:
    """The model's chunk (samples), or an error that tells what streams."""
    if codec.chunk_length is None:
        raise StreamError(offline_message(codec.name))
    return codec.chunk_length


class Stream(ABC):
    """A session: `push` what comes, then `flush` at the end.

    Sessions hold their own state, and many can share a model.
    """

    # What the input goes through, one after the other.
    ways: list["OneWay"]

    # Steps that went in, and that came out.
    pushed = given = 0

    def count(self, pushed: int, given: int) -> None:
        """Note what went in and came out.

        Arguments
        ---------
        pushed, given : int
            Steps.
        """
        self.pushed += pushed
        self.given += given

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

    def push(self, x: torch.Tensor) -> torch.Tensor:
        self.feed(self.checked(x))
        return self._run(self.take(len(self._pending) // self.chunk_length))

    def checked(self, x: torch.Tensor) -> torch.Tensor:
        """What may be fed, on the model's device, or an error."""
        if self.ended:
            raise StreamError(
                "the stream was ended by flush(); reset() starts a new one"
            )
        return self.direction.check(x).to(self._pending)

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
        x, self._pending = self._pending[:size], self._pending[size:]
        self.started = self.started or bool(chunks)
        return x

    def flush(self) -> torch.Tensor:
        if self.ended:
            return self.direction.empty()
        self.ended = True
        pending, self._pending = self._pending, self._pending[:0]
        self.started = self.started or bool(len(pending))
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
        tensors = dict(tensors)
        pending = _take(tensors, "pending", self.direction.dtype, 1)
        if len(pending) >= self.chunk_length:
            raise StreamError(
                f"state: pending holds {len(pending)} steps, a chunk of this "
                f"model {self.chunk_length}"
            )
        ended = bool(_take(tensors, "ended", torch.bool, 1))
        started = bool(_take(tensors, "started", torch.bool, 1))
        state = StreamState()
        try:
            state.restore(
                {k.removeprefix("state."): v for k, v in tensors.items()},
                self.direction.template() if started else StreamState(),
            )
        except ValueError as error:
            raise StreamError(str(error)) from error
        self._pending = pending.to(self._pending, copy=True)
        self.state, self.started, self.ended = state, started, ended

    def to(self, device: str | torch.device) -> "Stream":
        self._pending = self._pending.to(device)
        self.state.to(device)
        return self


def _take(
    tensors: dict[str, torch.Tensor], name: str, dtype: torch.dtype, rank: int
) -> torch.Tensor:
    """Remove a tensor that must be there."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise StreamError(f"state: misses {name}")
    if tensor.dtype != dtype or tensor.ndim != rank:
        raise StreamError(
            f"state: {name} is {tensor.dtype} {list(tensor.shape)}, which "
            "does not fit this model"
        )
    return tensor


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


class StreamingResynthesizer(Stream):
    """Samples to tokens and back, as they come.

    What has been given after `flush` lasts exactly as long as what was
    pushed.

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

    @property
    def ended(self) -> bool:
        """Whether the stream was flushed."""
        return self.encoder.ended

    def push(self, x: torch.Tensor) -> torch.Tensor:
        sig = self.decoder.push(self.encoder.push(x))
        self.count(len(x), len(sig))
        return sig

    def flush(self) -> torch.Tensor:
        if self.ended:
            return self.decoder.flush()
        tail = self.decoder.push(self.encoder.flush())
        tail = torch.cat([tail, self.decoder.flush()])
        wanted = self.codec.output_num_samples(self.pushed)
        return tail[: wanted - self.given]

    def reset(self) -> None:
        self.encoder.reset()
        self.decoder.reset()
        self.pushed = self.given = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            "counts": torch.tensor([self.pushed, self.given]),
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
        counts = _take(tensors, "counts", torch.int64, 1)
        if len(counts) != 2:
            raise StreamError("state: counts must hold two numbers")
        before = self.encoder.state_dict()
        tables = {}
        for name in ("encoder", "decoder"):
            prefix = f"{name}."
            names = [key for key in tensors if key.startswith(prefix)]
            tables[name] = {
                key.removeprefix(prefix): tensors.pop(key) for key in names
            }
        if tensors:
            raise StreamError(
                f"state: has unknown {', '.join(sorted(tensors)[:5])}"
            )
        self.encoder.load_state_dict(tables["encoder"])
        try:
            self.decoder.load_state_dict(tables["decoder"])
        except StreamError:
            self.encoder.load_state_dict(before)
            raise
        self.pushed, self.given = counts.tolist()

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
    >>> from speechbrain_focalcodec.voice import VoiceReference
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> reference = VoiceReference.from_sigs(codec, [torch.randn(16000)])
    >>> stream = StreamingVoiceConverter(codec, reference)
    >>> len(stream.push(torch.randn(2560)))
    3840
    """

    def __init__(
        self, codec: "FocalCodec", reference: "VoiceReference", k: int = 4
    ):
        device = next(codec.parameters()).device
        super().__init__(codec, reference.to(device).converter(codec, k))
