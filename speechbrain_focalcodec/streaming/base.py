"""The logic of streaming sessions, for torch and for onnxruntime.

FocalCodec-Stream, section 2. A session takes any number of samples (or
tokens) at a time, buffers them up to the model's chunk and returns the output
that is ready. The outputs of a session, concatenated, equal one offline pass
of the same causal model.

A back end implements :class:`Direction`. This module does not import torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from speechbrain_focalcodec.errors import AudioError, StreamError, TokenError

__all__ = [
    "Direction",
    "OneWay",
    "RoundTrip",
    "Session",
    "check_token_range",
    "check_token_type",
    "ended_by_failure",
    "take",
]

# torch.Tensor or np.ndarray.
Array = TypeVar("Array")


class Direction(ABC, Generic[Array]):
    """Encoding or decoding with a causal model.

    Arguments
    ---------
    codec : FocalCodec or OnnxFocalCodec
        A causal model.
    encodes : bool
        True: samples to tokens. False: tokens to samples.
    chunk_length : int
        Length of a chunk in samples or tokens.
    max_length : int
        Longest input of :meth:`step`; a multiple of `chunk_length`.
    """

    def __init__(
        self, codec: Any, encodes: bool, chunk_length: int, max_length: int
    ):
        self.codec = codec
        self.encodes = encodes
        self.chunk_length = chunk_length
        self.max_length = max_length

    @abstractmethod
    def array(self, x: Any) -> Array:
        """Convert a caller's input to an array of any type."""

    @abstractmethod
    def convert(self, x: Array) -> Array:
        """Convert an array to the model's input type and device."""

    @abstractmethod
    def concat(self, parts: Sequence[Array]) -> Array:
        """Concatenate one or more arrays [T] to a new array."""

    @abstractmethod
    def empty_input(self) -> Array:
        """An input of length 0."""

    @abstractmethod
    def empty_output(self) -> Array:
        """An output of length 0."""

    @abstractmethod
    def new_state(self) -> Any:
        """The state of a new stream."""

    @abstractmethod
    def step(self, x: Array, state: Any) -> Array:
        """Code chunks.

        Arguments
        ---------
        x : torch.Tensor or np.ndarray
            Samples or tokens [T]: whole chunks, or the rest of a stream.
        state : object
            State of the stream; updated in place.

        Returns
        -------
        torch.Tensor or np.ndarray
            Tokens or samples [N].
        """

    @abstractmethod
    def save(self, state: Any) -> dict[str, Array]:
        """Copy a state to arrays by name."""

    @abstractmethod
    def load(self, arrays: dict[str, Array]) -> Any:
        """Restore a state from :meth:`save`, or raise a ValueError."""

    def check(self, x: Any) -> Array:
        """Check and convert the input of a session.

        Arguments
        ---------
        x : array
            Samples or tokens [T], of any length.

        Returns
        -------
        torch.Tensor or np.ndarray
            The input in the model's type.

        Raises
        ------
        AudioError
            If a sample is NaN or infinite.
        TokenError
            If a token is not an integer in [0, codebook_size).
        ValueError
            If the shape or the type is wrong.
        """
        x = self.array(x)
        if self.encodes and "float" not in str(x.dtype):
            raise ValueError(
                f"sig: must be floats in [-1, 1], not {x.dtype}; divide "
                "integer samples by their full scale"
            )
        if x.ndim != 1:
            name = "sig: must be [T]" if self.encodes else "toks: must be [N]"
            raise ValueError(f"{name}, but its shape is {list(x.shape)}")
        if not len(x):
            return self.convert(x)
        if not self.encodes:
            check_token_type(x)
            x = self.convert(x)
            check_token_range(x, self.codec)
            return x
        x = self.convert(x)
        # False for NaN, which both minimum and maximum propagate.
        if not float("-inf") < x.min() <= x.max() < float("inf"):
            raise AudioError("sig: has NaN or infinite samples; remove them")
        return x


def check_token_type(toks: Any) -> None:
    """Raise a TokenError if an array of tokens does not hold integers."""
    if "int" not in str(toks.dtype):
        raise TokenError(f"toks must be integers, got {toks.dtype}")


def check_token_range(toks: Any, codec: Any) -> None:
    """Raise a TokenError if a token is not in the model's codebook."""
    low, high = int(toks.min()), int(toks.max())
    if low < 0 or high >= codec.codebook_size:
        raise TokenError(
            f"toks must lie in 0..{codec.codebook_size - 1} for {codec.name}, "
            f"got {low}..{high}; were they made by another model?"
        )


class Session(ABC, Generic[Array]):
    """A live stream: `push` its input, then `flush` at the end.

    Sessions share a model and hold their own state. To copy a session, load
    its :meth:`state_dict` into a new one; a pickle also holds the model. If
    coding a chunk fails, the stream ends, because its state is incomplete:
    all methods but `reset` and `load_state_dict` then raise a StreamError.
    """

    #: The sessions that the input passes: encoder, decoder, or both.
    ways: list["OneWay[Array]"]
    # Arguments of __init__, for pickling.
    _made_with: tuple[Any, ...]

    def __reduce__(self):
        return type(self), self._made_with, self.state_dict()

    def __setstate__(self, tensors: dict[str, Array]) -> None:
        self.load_state_dict(tensors)

    def count(self, pushed: int, returned: int) -> None:
        """Count the input and output of a push; only :class:`RoundTrip`."""

    @abstractmethod
    def push(self, x: Array) -> Array:
        """Add input and return the output that is ready.

        Arguments
        ---------
        x : torch.Tensor or np.ndarray
            Input [T], of any length, also 0.

        Returns
        -------
        torch.Tensor or np.ndarray
            Output [N], possibly of length 0, on the model's device.
        """

    @abstractmethod
    def flush(self) -> Array:
        """End the stream.

        Returns
        -------
        torch.Tensor or np.ndarray
            Output [N] of the last, incomplete chunk, possibly of length 0.
        """

    @abstractmethod
    def reset(self) -> None:
        """Start a new stream."""

    @abstractmethod
    def state_dict(self) -> dict[str, Array]:
        """Copy the state of the stream, which is bounded in size.

        Returns
        -------
        dict
            Tensors or arrays by name, which `save_file` of safetensors takes.
        """

    @abstractmethod
    def load_state_dict(self, tensors: dict[str, Array]) -> None:
        """Continue the stream of another session of the same model.

        Arguments
        ---------
        tensors : dict
            From :meth:`state_dict`.

        Raises
        ------
        StreamError
            If a tensor is missing, unknown or does not fit; the session
            is left unchanged.
        """


@contextmanager
def ended_by_failure(ways: Iterable["OneWay[Any]"]) -> Iterator[None]:
    """End the streams that are coded in the block if it raises an error."""
    try:
        yield
    except BaseException:
        for way in ways:
            way.failed = True
        raise


class OneWay(Session[Array]):
    """A session that encodes or decodes.

    Arguments
    ---------
    direction : Direction
        Encoding or decoding with a model.
    """

    def __init__(self, direction: Direction[Array]):
        self.direction = direction
        self.chunk_length = direction.chunk_length
        self.ways = [self]
        self._made_with = (direction.codec,)
        self.reset()

    def reset(self) -> None:
        direction = self.direction
        #: Input [T] that does not fill a chunk yet.
        self.pending: Any = direction.empty_input()
        self.state = direction.new_state()
        self.ended = self.failed = False

    def push(self, x: Array) -> Array:
        x = self.checked(x)
        with ended_by_failure(self.ways):
            return self.code(x)

    def checked(self, x: Any) -> Any:
        """The input of :meth:`code`; an error if it cannot be pushed."""
        self._check_not_failed()
        if self.ended:
            raise StreamError(
                "the stream was ended by flush(); reset() starts a new one"
            )
        return self.direction.check(x)

    def _check_not_failed(self) -> None:
        if self.failed:
            raise StreamError(
                "the stream was ended by a failure inside a chunk; reset() "
                "starts a new one"
            )

    def code(self, x: Array) -> Array:
        """Add checked input and code all full chunks."""
        self.feed(x)
        return self._run(self.take(len(self.pending) // self.chunk_length))

    def feed(self, x: Array) -> None:
        """Add checked input to `pending`."""
        # A copy: the caller may use its buffer again.
        self.pending = self.direction.concat([self.pending, x])

    @property
    def ready(self) -> bool:
        """Whether `pending` holds a full chunk."""
        return len(self.pending) >= self.chunk_length

    def take(self, chunks: int) -> Any:
        """Remove full chunks from `pending`."""
        size = chunks * self.chunk_length
        # A copy: a view would keep all that was pushed.
        rest = self.direction.concat([self.pending[size:]])
        x, self.pending = self.pending[:size], rest
        return x

    def flush(self) -> Array:
        self._check_not_failed()
        self.ended = True
        x, self.pending = self.pending, self.pending[:0]
        with ended_by_failure(self.ways):
            return self._run(x)

    def _run(self, x: Any) -> Array:
        """Code full chunks, or the last one."""
        size = self.direction.max_length
        outputs = [
            self.direction.step(x[start : start + size], self.state)
            for start in range(0, len(x), size)
        ]
        if len(outputs) == 1:
            return outputs[0]
        return self.direction.concat([self.direction.empty_output(), *outputs])

    def state_dict(self) -> dict[str, Array]:
        self._check_not_failed()
        return {
            "pending": self.direction.concat([self.pending]),
            "ended": self.direction.array([self.ended]),
            **self.direction.save(self.state),
        }

    def load_state_dict(self, tensors: dict[str, Array]) -> None:
        self.install(*self.parse(tensors))

    def parse(self, tensors: dict[str, Array]) -> tuple[Array, Any, bool]:
        """Check a :meth:`state_dict` and convert it for :meth:`install`."""
        direction = self.direction
        like = direction.empty_input()
        tensors = dict(tensors)
        try:
            pending = take(tensors, "pending", like)
            if len(pending) >= self.chunk_length:
                raise ValueError(
                    f"pending holds {len(pending)} steps, a chunk of this "
                    f"model {self.chunk_length}"
                )
            ended = take(tensors, "ended", direction.array([True]), 1)
            pending = direction.concat([direction.check(pending)])
            return pending, direction.load(tensors), bool(ended[0])
        except ValueError as error:
            message = str(error).removeprefix("state: ")
            raise StreamError(f"state: {message}") from error

    def install(self, pending: Array, state: Any, ended: bool) -> None:
        """Continue with the result of :meth:`parse`."""
        self.pending, self.state, self.ended = pending, state, ended
        self.failed = False


class RoundTrip(Session[Array]):
    """A session that encodes and decodes.

    The outputs up to `flush` last exactly as long as the input.

    Arguments
    ---------
    encoding, decoding : Direction
        Both directions of a model.
    """

    def __init__(self, encoding: Direction[Array], decoding: Direction[Array]):
        self.codec = encoding.codec
        self.encoder, self.decoder = OneWay(encoding), OneWay(decoding)
        self.ways = [self.encoder, self.decoder]
        self.chunk_length = self.encoder.chunk_length
        self._made_with = (self.codec,)
        self.pushed = self.returned = 0

    @property
    def ended(self) -> bool:
        """Whether the stream was flushed."""
        return self.encoder.ended

    def count(self, pushed: int, returned: int) -> None:
        self.pushed += pushed
        self.returned += returned

    def push(self, x: Array) -> Array:
        checked = self.encoder.checked(x)
        with ended_by_failure(self.ways):
            sig: Any = self.decoder.push(self.encoder.code(checked))
        self.count(len(checked), len(sig))
        return sig

    def flush(self) -> Array:
        if self.ended:
            return self.decoder.flush()
        with ended_by_failure(self.ways):
            parts = [self.decoder.push(self.encoder.flush())]
            parts.append(self.decoder.flush())
        tail: Any = self.decoder.direction.concat(parts)
        return tail[: self._num_samples(self.pushed) - self.returned]

    def _num_samples(self, pushed: int) -> int:
        return int(self.codec.output_num_samples(pushed))

    def reset(self) -> None:
        self.encoder.reset()
        self.decoder.reset()
        self.pushed = self.returned = 0

    def state_dict(self) -> dict[str, Array]:
        counts = [self.pushed, self.returned]
        return {
            "counts": self.encoder.direction.array(counts),
            **_prefixed("encoder.", self.encoder.state_dict()),
            **_prefixed("decoder.", self.decoder.state_dict()),
        }

    def load_state_dict(self, tensors: dict[str, Array]) -> None:
        tensors = dict(tensors)
        like = self.encoder.direction.array([0, 0])
        try:
            counts = take(tensors, "counts", like, 2)
        except ValueError as error:
            raise StreamError(f"state: {error}") from None
        pushed, returned = counts.tolist()
        wanted = self._num_samples(max(pushed, 0))
        if pushed < 0 or not 0 <= returned <= wanted:
            raise StreamError(
                f"state: counts say that {pushed} samples gave {returned}"
            )
        parts: dict[str, dict[str, Array]] = {"encoder": {}, "decoder": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part not in parts:
                raise StreamError(
                    f"state: has unknown {key}; was it saved by another kind "
                    "of session?"
                )
            parts[part][name] = tensor
        # Both are checked before one is changed.
        encoder = self.encoder.parse(parts["encoder"])
        decoder = self.decoder.parse(parts["decoder"])
        self.encoder.install(*encoder)
        self.decoder.install(*decoder)
        self.pushed, self.returned = pushed, returned


def take(
    tensors: dict[str, Any], name: str, like: Any, length: int | None = None
) -> Any:
    """Remove a tensor [T] with the type of `like`, or raise a ValueError."""
    x = tensors.pop(name, None)
    if x is None:
        raise ValueError(f"misses {name}; was it saved by another session?")
    if not isinstance(x, type(like)):
        raise ValueError(f"{name} is a {type(x).__name__}")
    if (
        x.dtype != like.dtype
        or x.ndim != 1
        or (length is not None and len(x) != length)
    ):
        raise ValueError(
            f"{name} is {x.dtype} {list(x.shape)}, which does not fit this "
            "model"
        )
    return x


def _prefixed(prefix: str, tensors: dict[str, Array]) -> dict[str, Array]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
