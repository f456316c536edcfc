"""Encoding and decoding chunk by chunk with an exported causal model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from speechbrain_focalcodec.errors import CheckpointError, StreamError, abridge
from speechbrain_focalcodec.hub import offline_message
from speechbrain_focalcodec.onnx.files import OnnxStep
from speechbrain_focalcodec.streaming.base import Direction

__all__ = ["OnnxDirection", "with_clear_errors"]

Arrays = dict[str, np.ndarray]


class OnnxDirection(Direction[np.ndarray]):
    """Encoding or decoding with an exported causal model.

    A state is a list of OrtValue: `seen`, then the tensors that
    `OnnxStep.state` names.

    Arguments
    ---------
    codec : OnnxFocalCodec
        A causal model.
    encodes : bool
        True: samples to tokens. False: tokens to samples.
    session : onnxruntime.InferenceSession
        Runs the step graph of this direction.
    facts : OnnxStep, optional
        Facts of that graph; None in an offline model.

    Raises
    ------
    StreamError
        If the model is an offline one.
    """

    def __init__(
        self, codec: Any, encodes: bool, session: Any, facts: OnnxStep | None
    ):
        if facts is None:
            raise StreamError(offline_message(codec.name))
        # Not at the top: the extra may be missing.
        from onnxruntime import OrtValue

        super().__init__(codec, encodes, facts.chunk_length, facts.chunk_length)
        self.dtype: type = np.float32 if encodes else np.int64
        self.output_dtype: type = np.int64 if encodes else np.float32
        self._value = OrtValue.ortvalue_from_numpy
        self._shapes: dict[str, list[int]] = {
            "seen": [],
            **{f"state.{name}": shape for name, shape in facts.state.items()},
        }
        self._inputs = [item.name for item in session.get_inputs()]
        self._outputs = [item.name for item in session.get_outputs()]
        self._run = with_clear_errors(session.run_with_ort_values)

    def array(self, x: Any) -> np.ndarray:
        return np.asarray(x)

    def convert(self, x: np.ndarray) -> np.ndarray:
        return x.astype(self.dtype)

    def concat(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def empty_input(self) -> np.ndarray:
        return np.empty(0, self.dtype)

    def empty_output(self) -> np.ndarray:
        return np.empty(0, self.output_dtype)

    def new_state(self, batch: int = 1) -> list[Any]:
        return self._values(self._zeros(batch))

    def _zeros(self, batch: int) -> Arrays:
        return {
            name: np.zeros(
                (batch, *shape), np.int64 if name == "seen" else np.float32
            )
            for name, shape in self._shapes.items()
        }

    def _values(self, arrays: Arrays) -> list[Any]:
        # Copies, which onnxruntime refers to.
        return [self._value(arrays[name].copy()) for name in self._shapes]

    def step(self, x: np.ndarray, state: list[Any]) -> np.ndarray:
        y, lengths = self.run(x[None], np.array([len(x)]), state)
        return y[0, : lengths[0]]

    def run(
        self, x: np.ndarray, lengths: np.ndarray, state: list[Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Code a chunk of a batch.

        Arguments
        ---------
        x : np.ndarray
            Samples or tokens [B, T], T <= chunk_length.
        lengths : np.ndarray
            Samples or tokens, int64 [B].
        state : list of OrtValue
            State of the batch; updated in place.

        Returns
        -------
        y : np.ndarray
            Tokens or samples [B, N].
        lengths : np.ndarray
            Tokens or samples, int64 [B].
        """
        chunk: np.ndarray = np.zeros((len(x), self.chunk_length), self.dtype)
        chunk[:, : x.shape[1]] = x
        values = [self._value(chunk), self._value(lengths), *state]
        y, out_lengths, *state[:] = self._run(
            self._outputs, dict(zip(self._inputs, values, strict=True))
        )
        return y.numpy(), out_lengths.numpy()

    def run_all(
        self, x: np.ndarray, lengths: np.ndarray, out: np.ndarray
    ) -> np.ndarray:
        """Code whole utterances chunk by chunk.

        Arguments
        ---------
        x : np.ndarray
            Samples or tokens [B, T].
        lengths : np.ndarray
            Samples or tokens, int64 [B], each at least 1.
        out : np.ndarray
            Zeros [B, N]; the output is written here.

        Returns
        -------
        np.ndarray
            Lengths of the outputs, int64 [B].
        """
        rows = np.arange(len(x))
        out_lengths = np.zeros(len(x), np.int64)
        state = self.new_state(len(x))
        for start in range(0, int(lengths.max()), self.chunk_length):
            left = lengths[rows] - start
            if left.min() < 1:
                # Utterances that have ended leave the batch.
                rows, kept = rows[left > 0], self.save(state)
                state = self._values({k: v[left > 0] for k, v in kept.items()})
                left = left[left > 0]
            chunk = x[rows, start : start + self.chunk_length]
            y, counts = self.run(
                chunk, np.minimum(left, self.chunk_length), state
            )
            # All chunks but the last have outputs of one length.
            first = int(out_lengths[rows].max())
            room = out[:, first : first + y.shape[1]]
            y = y[:, : room.shape[1]]
            within = np.arange(y.shape[1]) < counts[:, None]
            room[rows] = np.where(within, y, y.dtype.type(0))
            out_lengths[rows] += counts
        return out_lengths

    def save(self, state: list[Any]) -> Arrays:
        arrays = (np.array(x.numpy()) for x in state)
        return dict(zip(self._shapes, arrays, strict=True))

    def load(self, arrays: Arrays) -> list[Any]:
        wanted = self._zeros(1)
        for what, names in (
            ("misses", wanted.keys() - arrays.keys()),
            ("has unknown", arrays.keys() - wanted.keys()),
        ):
            if names:
                raise ValueError(
                    f"{what} {abridge(sorted(names))}; was it saved by "
                    "another model?"
                )
        for name, like in wanted.items():
            x = np.asarray(arrays[name])
            if x.shape != like.shape or x.dtype != like.dtype:
                raise ValueError(
                    f"{name} is {x.dtype} {list(x.shape)}, which does not "
                    "fit this model"
                )
            if not np.isfinite(x).all():
                raise ValueError(f"{name} has NaN or infinite values")
        if arrays["seen"].min() < 0:
            raise ValueError("seen is negative")
        return self._values(arrays)


def with_clear_errors(run: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors of onnxruntime into a CheckpointError.

    Arguments
    ---------
    run : callable
        Method of an ``onnxruntime.InferenceSession``.

    Returns
    -------
    callable
        Takes and returns the same.
    """

    def run_clearly(*args: Any) -> Any:
        try:
            return run(*args)
        # Its errors have no other base class.
        except Exception as error:
            raise CheckpointError(
                f"onnxruntime cannot run the graph: {error}"
            ) from error

    return run_clearly
