"""Live audio on onnxruntime: chunk by chunk, and no PyTorch.

What :mod:`speechbrain_focalcodec.streaming.sessions` does for a causal
:class:`~speechbrain_focalcodec.codec.FocalCodec`, for a causal model that
``focalcodec export-onnx`` wrote, with NumPy arrays. All that comes out of a
session, put together, is what `OnnxFocalCodec` gives for the whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from speechbrain_focalcodec.errors import (
    AudioError,
    CheckpointError,
    StreamError,
)
from speechbrain_focalcodec.onnx.files import OnnxStep

if TYPE_CHECKING:
    from speechbrain_focalcodec.onnx.runtime import OnnxFocalCodec

__all__ = [
    "OnnxDirection",
    "OnnxStreamingDecoder",
    "OnnxStreamingEncoder",
    "OnnxStreamingResynthesizer",
]

Arrays = dict[str, np.ndarray]


class OnnxDirection:
    """One way through an exported causal model: encoding or decoding.

    Arguments
    ---------
    session : onnxruntime.InferenceSession
        Of a step.
    facts : OnnxStep
        What it takes and keeps.
    check : callable
        From what a caller gave to an array [T], or an error.
    dtypes : tuple of np.dtype
        Of the input and of the output.
    """

    def __init__(
        self,
        session: Any,
        facts: OnnxStep,
        check: Callable[[Any], np.ndarray],
        dtypes: tuple[type, type],
    ):
        # Not at the top: the extra may be missing.
        from onnxruntime import OrtValue

        self._value = OrtValue.ortvalue_from_numpy
        self.session = session
        self.facts = facts
        self.chunk_length = facts.chunk_length
        self.check = check
        self.dtype, self.output_dtype = dtypes
        self._inputs = [item.name for item in session.get_inputs()]
        self._outputs = [item.name for item in session.get_outputs()]
        self._run = failing_clearly(session.run_with_ort_values)

    def start(self, batch: int = 1) -> Arrays:
        """What new streams carry.

        Arguments
        ---------
        batch : int
            Streams.

        Returns
        -------
        dict
            Zeros by name.
        """
        return {
            "seen": np.zeros(batch, np.int64),
            **{
                f"state.{name}": np.zeros((batch, *shape), np.float32)
                for name, shape in self.facts.state.items()
            },
        }

    def carry(self, arrays: Arrays) -> list[Any]:
        """Arrays as onnxruntime takes them.

        Arguments
        ---------
        arrays : dict
            As :meth:`start` gives them.

        Returns
        -------
        list of OrtValue
            Of their own: the arrays may be used again.
        """
        return [self._value(x.copy()) for x in arrays.values()]

    def arrays(self, carried: list[Any]) -> Arrays:
        """What is carried, as arrays.

        Arguments
        ---------
        carried : list of OrtValue
            From :meth:`carry` or :meth:`run`.

        Returns
        -------
        dict
            Copies by name, as :meth:`start` gives them.
        """
        names = ["seen", *(f"state.{name}" for name in self.facts.state)]
        values = (np.array(x.numpy()) for x in carried)
        return dict(zip(names, values, strict=True))

    def run(
        self, x: np.ndarray, lengths: np.ndarray, carried: list[Any]
    ) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Code a chunk.

        Arguments
        ---------
        x : np.ndarray
            Samples or tokens [B, n], n <= chunk_length.
        lengths : np.ndarray
            How many of them are some, int64 [B].
        carried : list of OrtValue
            What the chunk before gave; left as it is.

        Returns
        -------
        y : np.ndarray
            Tokens or samples [B, N].
        lengths : np.ndarray
            How many of them are some, int64 [B].
        carried : list of OrtValue
            For the next chunk.
        """
        whole: np.ndarray = np.zeros((len(x), self.chunk_length), self.dtype)
        whole[:, : x.shape[1]] = x
        values = [self._value(whole), self._value(lengths), *carried]
        y, out_lengths, *carried = self._run(
            self._outputs, dict(zip(self._inputs, values, strict=True))
        )
        return y.numpy(), out_lengths.numpy(), carried

    def run_all(
        self, x: np.ndarray, lengths: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Code whole utterances, chunk by chunk.

        Arguments
        ---------
        x : np.ndarray
            Samples or tokens [B, T].
        lengths : np.ndarray
            How many of them are some, int64 [B], each at least 1.

        Returns
        -------
        iterator of (np.ndarray, np.ndarray, np.ndarray)
            Of each chunk: rows of the batch that it is of, int64 [R], what
            they give [R, N] and how many of that are some, int64 [R].
        """
        rows = np.arange(len(x))
        carried = self.carry(self.start(len(x)))
        for first in range(0, int(lengths.max()), self.chunk_length):
            left = lengths[rows] - first
            if left.min() < 1:
                # What has ended costs no more.
                going = left > 0
                rows, left = rows[going], left[going]
                state = self.arrays(carried)
                carried = self.carry({k: v[going] for k, v in state.items()})
            chunk = x[rows, first : first + self.chunk_length]
            left = np.minimum(left, self.chunk_length)
            y, counts, carried = self.run(chunk, left, carried)
            yield rows, y, counts


def failing_clearly(run: Callable[..., Any]) -> Callable[..., Any]:
    """Have onnxruntime's errors come out as this package's.

    Arguments
    ---------
    run : callable
        Of an ``onnxruntime.InferenceSession``.

    Returns
    -------
    callable
        The same, which raises a CheckpointError.
    """

    def run_clearly(*args: Any) -> Any:
        try:
            return run(*args)
        # Its errors have no base class but this.
        except Exception as error:
            raise CheckpointError(
                f"onnxruntime cannot run the graph: {error}"
            ) from error

    return run_clearly


@contextmanager
def _ended_by_failure(*ways: "_OneWay") -> Iterator[None]:
    """End streams in whose chunks something fails."""
    try:
        yield
    except BaseException:
        for way in ways:
            way.failed = True
        raise


class _OneWay:
    """A session in one direction: see :class:`OnnxStreamingEncoder`."""

    def __init__(self, codec: "OnnxFocalCodec", direction: OnnxDirection):
        self.codec = codec
        self.direction = direction
        self.chunk_length = direction.chunk_length
        self.reset()

    def __reduce__(self):
        return type(self), (self.codec,), self.state_dict()

    def __setstate__(self, arrays: Arrays) -> None:
        self.load_state_dict(arrays)

    def reset(self) -> None:
        """Start a new stream."""
        self._pending: np.ndarray = np.empty(0, self.direction.dtype)
        self._carried = self.direction.carry(self.direction.start())
        self.ended = self.failed = False

    def push(self, x: np.ndarray) -> np.ndarray:
        """Take what has come and give what is ready.

        Arguments
        ---------
        x : np.ndarray
            Input [T], of any length, also 0.

        Returns
        -------
        np.ndarray
            Output [N], maybe of length 0.
        """
        x = self.checked(x)
        with _ended_by_failure(self):
            return self.code(x)

    def checked(self, x: np.ndarray) -> np.ndarray:
        """What may be coded, or an error."""
        self.check_whole()
        if self.ended:
            raise StreamError(
                "the stream was ended by flush(); reset() starts a new one"
            )
        return self.direction.check(x).astype(self.direction.dtype)

    def check_whole(self) -> None:
        """Refuse to go on after a failure."""
        if self.failed:
            raise StreamError(
                "the stream was ended by a failure inside a chunk; reset() "
                "starts a new one"
            )

    def code(self, x: np.ndarray) -> np.ndarray:
        """Code what :meth:`checked` gave, as far as chunks are full."""
        self._pending = np.concatenate([self._pending, x])
        return self._run(len(self._pending) // self.chunk_length)

    def flush(self) -> np.ndarray:
        """End the stream.

        Returns
        -------
        np.ndarray
            Output [N] of the last, incomplete chunk, maybe of length 0.
        """
        self.check_whole()
        self.ended = True
        with _ended_by_failure(self):
            return self._run(int(len(self._pending) > 0))

    def _run(self, chunks: int) -> np.ndarray:
        """Code what waits, chunk by chunk."""
        empty: np.ndarray = np.empty(0, self.direction.output_dtype)
        parts = [empty]
        for _ in range(chunks):
            x = self._pending[: self.chunk_length]
            self._pending = self._pending[self.chunk_length :]
            y, lengths, self._carried = self.direction.run(
                x[None], np.array([len(x)]), self._carried
            )
            parts.append(y[0, : lengths[0]])
        return np.concatenate(parts)

    def state_dict(self) -> Arrays:
        """All that the stream carries, in bounded memory.

        Returns
        -------
        dict
            Arrays by name, copies, as `safetensors.numpy.save_file` takes
            them.
        """
        self.check_whole()
        return {
            "pending": self._pending.copy(),
            "ended": np.array([self.ended]),
            **self.direction.arrays(self._carried),
        }

    def load_state_dict(self, arrays: Arrays) -> None:
        """Go on where another session of the same model was.

        Arguments
        ---------
        arrays : dict
            From :meth:`state_dict`.

        Raises
        ------
        StreamError
            If an array is missing, unknown or does not fit; the session
            stays as it was.
        """
        self.install(self.parse(arrays))

    def parse(self, arrays: Arrays) -> Arrays:
        """Check what :meth:`state_dict` gave."""
        start = self.direction.start()
        pending: np.ndarray = np.empty(0, self.direction.dtype)
        wanted = {"pending": pending, "ended": np.zeros(1, bool), **start}
        for what, names in (
            ("misses", wanted.keys() - arrays.keys()),
            ("has unknown", arrays.keys() - wanted.keys()),
        ):
            if names:
                raise StreamError(
                    f"state: {what} {', '.join(sorted(names)[:5])}; was it "
                    "saved by another model?"
                )
        for name, like in wanted.items():
            got = np.asarray(arrays[name])
            fits = got.shape == like.shape
            if name == "pending":
                fits = got.ndim == 1 and len(got) < self.chunk_length
            if name == "seen":
                fits = fits and got.min() >= 0
            if not fits or got.dtype != like.dtype:
                raise StreamError(
                    f"state: {name} is {got.dtype} {list(got.shape)}, which "
                    "does not fit this model"
                )
            if not np.isfinite(got).all():
                raise StreamError(f"state: {name} has NaN or infinite values")
        try:
            self.direction.check(arrays["pending"])
        except ValueError as error:
            raise StreamError(f"state: {error}") from error
        return {name: np.array(arrays[name]) for name in wanted}

    def install(self, arrays: Arrays) -> None:
        """Go on with what :meth:`parse` gave."""
        self._pending = arrays.pop("pending")
        self.ended = bool(arrays.pop("ended")[0])
        self._carried = self.direction.carry(arrays)
        self.failed = False


class OnnxStreamingEncoder(_OneWay):
    """Samples to tokens, as they come.

    Arguments
    ---------
    codec : OnnxFocalCodec
        A causal model. It is shared, not copied.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    """

    def __init__(self, codec: "OnnxFocalCodec"):
        super().__init__(codec, codec.encoding())


class OnnxStreamingDecoder(_OneWay):
    """Tokens to samples, as they come.

    Arguments
    ---------
    codec : OnnxFocalCodec
        A causal model. It is shared, not copied.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    """

    def __init__(self, codec: "OnnxFocalCodec"):
        super().__init__(codec, codec.decoding())


class OnnxStreamingResynthesizer:
    """Samples to tokens and back, as they come.

    What has been given after `flush` lasts exactly as long as what was
    pushed.

    Arguments
    ---------
    codec : OnnxFocalCodec
        A causal model. It is shared, not copied.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    """

    def __init__(self, codec: "OnnxFocalCodec"):
        self.codec = codec
        self.encoder = OnnxStreamingEncoder(codec)
        self.decoder = OnnxStreamingDecoder(codec)
        self.chunk_length = self.encoder.chunk_length
        self.pushed = self.given = 0

    def __reduce__(self):
        return type(self), (self.codec,), self.state_dict()

    def __setstate__(self, arrays: Arrays) -> None:
        self.load_state_dict(arrays)

    @property
    def ended(self) -> bool:
        """Whether the stream was flushed."""
        return self.encoder.ended

    def push(self, x: np.ndarray) -> np.ndarray:
        """Take what has come and give what is ready.

        Arguments
        ---------
        x : np.ndarray
            Samples [T], of any length, also 0.

        Returns
        -------
        np.ndarray
            Samples [N], maybe of length 0.
        """
        x = self.encoder.checked(x)
        with _ended_by_failure(self.encoder, self.decoder):
            sig = self.decoder.push(self.encoder.code(x))
        self.pushed += len(x)
        self.given += len(sig)
        return sig

    def flush(self) -> np.ndarray:
        """End the stream.

        Returns
        -------
        np.ndarray
            Samples [N] of the last, incomplete chunk, maybe of length 0.
        """
        if self.ended:
            return self.decoder.flush()
        with _ended_by_failure(self.encoder, self.decoder):
            tail = self.decoder.push(self.encoder.flush())
            tail = np.concatenate([tail, self.decoder.flush()])
        wanted = self.codec.output_num_samples(self.pushed)
        return tail[: wanted - self.given]

    def reset(self) -> None:
        """Start a new stream."""
        self.encoder.reset()
        self.decoder.reset()
        self.pushed = self.given = 0

    def state_dict(self) -> Arrays:
        """See :meth:`OnnxStreamingEncoder.state_dict`.

        Returns
        -------
        dict
            Arrays by name, copies.
        """
        return {
            "counts": np.array([self.pushed, self.given]),
            **{f"encoder.{k}": v for k, v in self.encoder.state_dict().items()},
            **{f"decoder.{k}": v for k, v in self.decoder.state_dict().items()},
        }

    def load_state_dict(self, arrays: Arrays) -> None:
        """See :meth:`OnnxStreamingEncoder.load_state_dict`.

        Arguments
        ---------
        arrays : dict
            From :meth:`state_dict`.

        Raises
        ------
        StreamError
            If an array is missing, unknown or does not fit; the session
            stays as it was.
        """
        counts = np.asarray(arrays.get("counts", ()))
        if counts.shape != (2,) or counts.dtype != np.int64:
            raise StreamError("state: counts must hold two int64 numbers")
        pushed, given = counts.tolist()
        wanted = self.codec.output_num_samples(max(pushed, 0))
        if pushed < 0 or not 0 <= given <= wanted:
            raise StreamError(
                f"state: counts say that {pushed} samples gave {given}"
            )
        parts: dict[str, Arrays] = {"encoder": {}, "decoder": {}}
        for key, array in arrays.items():
            way, _, name = key.partition(".")
            if way in parts:
                parts[way][name] = array
            elif key != "counts":
                raise StreamError(f"state: has unknown {key}")
        # Both are checked before one is changed.
        encoder = self.encoder.parse(parts["encoder"])
        decoder = self.decoder.parse(parts["decoder"])
        self.encoder.install(encoder)
        self.decoder.install(decoder)
        self.pushed, self.given = pushed, given


def check_pushed(sig: Any) -> np.ndarray:
    """Refuse what a stream of samples cannot take.

    Arguments
    ---------
    sig : np.ndarray
        What was pushed.

    Returns
    -------
    np.ndarray
        `sig`, floats [T].

    Raises
    ------
    AudioError
        If a sample is infinite or no number.
    ValueError
        If the shape or the type is wrong.

    Example
    -------
    >>> check_pushed(np.zeros((2, 100), np.float32))
    Traceback (most recent call last):
    ...
    ValueError: sig: must be [T], but its shape is [2, 100]
    """
    sig = np.asarray(sig)
    if sig.dtype.kind != "f":
        raise ValueError(
            f"sig: must be a float array in [-1, 1], not {sig.dtype}; "
            "divide integer samples by their full scale"
        )
    if sig.ndim != 1:
        raise ValueError(
            f"sig: must be [T], but its shape is {list(sig.shape)}"
        )
    if not np.isfinite(sig).all():
        raise AudioError("sig: has NaN or infinite samples; remove them")
    return sig
