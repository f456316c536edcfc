"""Continuous batching: one model serves many live streams.

Each step codes one chunk of every stream that has one, in one batch, so that
the weights are read from memory once for all streams. Streams join and leave
at any time and have a pace of their own. The output of a stream does not
depend on the others.
"""

from typing import Any, Literal, get_args

import torch

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import StreamError
from speechbrain_focalcodec.modules.causal import StreamGroup
from speechbrain_focalcodec.streaming.base import OneWay, ended_by_failure
from speechbrain_focalcodec.streaming.sessions import (
    Stream,
    StreamingDecoder,
    StreamingEncoder,
    StreamingResynthesizer,
)

__all__ = ["StreamPool"]

Kind = Literal["encode", "decode", "resynthesize"]
SESSIONS: dict[str, type] = {
    "encode": StreamingEncoder,
    "decode": StreamingDecoder,
    "resynthesize": StreamingResynthesizer,
}


class StreamPool:
    """Live streams that share a model and its batches.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.
    size : int
        Maximum number of streams, and of rows of a batch.
    kind : str
        ``encode`` (samples to tokens), ``decode`` (tokens to samples) or
        ``resynthesize`` (samples to samples).

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    ValueError
        If an argument is wrong.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> pool = StreamPool(codec, size=2, kind="encode")
    >>> a, b = pool.join(), pool.join()
    >>> out = pool.push({a: torch.zeros(1280), b: torch.zeros(3000)})
    >>> len(out[a]), len(out[b])
    (4, 8)
    >>> len(pool.leave(b))
    2
    """

    def __init__(
        self, codec: FocalCodec, size: int, kind: Kind = "resynthesize"
    ):
        if kind not in SESSIONS:
            raise ValueError(
                f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}"
            )
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be an integer above 0, got {size!r}")
        self.codec = codec
        self.size = size
        self.kind = kind
        self._streams: dict[int, Stream] = {}
        # Also refuses models that do not stream.
        self.chunk_length: int = self._new().chunk_length

    def _new(self):
        return SESSIONS[self.kind](self.codec)

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def slots(self) -> list[int]:
        """Slots of the streams in the pool."""
        return sorted(self._streams)

    def join(self, state: dict[str, torch.Tensor] | None = None) -> int:
        """Start a stream, or continue one.

        Arguments
        ---------
        state : dict, optional
            From :meth:`state_dict`, of a stream of the same kind and model.

        Returns
        -------
        int
            Slot of the stream.

        Raises
        ------
        StreamError
            If all slots are taken, or the state does not fit.
        """
        if len(self._streams) == self.size:
            raise StreamError(
                f"all {self.size} slots are taken; let a stream leave, or "
                "make a larger pool"
            )
        stream = self._new()
        if state is not None:
            stream.load_state_dict(state)
            if stream.ways[0].ended:
                raise StreamError("state: of a stream that has ended")
        slot = next(i for i in range(self.size) if i not in self._streams)
        self._streams[slot] = stream
        return slot

    def push(self, inputs: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Add input of some streams and return their output that is ready.

        Arguments
        ---------
        inputs : dict
            Input [T] by slot, of any length.

        Returns
        -------
        dict
            Output [N] by the same slots, possibly of length 0.

        Raises
        ------
        StreamError
            If there is no such stream.
        AudioError or TokenError
            If an input is bad. Then no stream is changed.

        Notes
        -----
        If coding fails, all streams of `inputs` end. `leave` then raises a
        StreamError and frees their slots.
        """
        streams = {slot: self._get(slot) for slot in inputs}
        checked = {}
        for slot, x in inputs.items():
            try:
                checked[slot] = streams[slot].ways[0].checked(x)
            except ValueError as error:
                raise type(error)(f"slot {slot}: {error}") from error
        outputs = checked
        depth = len(next(iter(streams.values())).ways) if streams else 0
        with ended_by_failure(
            [way for stream in streams.values() for way in stream.ways]
        ):
            for i in range(depth):
                ways = {
                    slot: stream.ways[i] for slot, stream in streams.items()
                }
                for slot, x in outputs.items():
                    ways[slot].feed(x)
                outputs = _run(ways)
        for slot, stream in streams.items():
            stream.count(len(checked[slot]), len(outputs[slot]))
        return outputs

    def leave(self, slot: int) -> torch.Tensor:
        """End a stream and free its slot.

        Arguments
        ---------
        slot : int
            The stream.

        Returns
        -------
        torch.Tensor
            Output [N] of its last, incomplete chunk.

        Raises
        ------
        StreamError
            If there is no such stream, or it ended by a failure.
        """
        stream = self._get(slot)
        try:
            return stream.flush()
        finally:
            del self._streams[slot]

    def state_dict(self, slot: int) -> dict[str, torch.Tensor]:
        """Copy the state of a stream: see :meth:`Stream.state_dict`.

        Arguments
        ---------
        slot : int
            The stream.

        Returns
        -------
        dict
            Tensors by name.
        """
        return self._get(slot).state_dict()

    def to(self, device: str | torch.device) -> "StreamPool":
        """Move the streams to the device to which the model was moved.

        Arguments
        ---------
        device : str or torch.device
            Device of the model.

        Returns
        -------
        StreamPool
            Itself.
        """
        for stream in self._streams.values():
            stream.to(device)
        return self

    def _get(self, slot: int) -> Stream:
        if slot not in self._streams:
            raise StreamError(
                f"there is no stream in slot {slot!r}; join() gives one"
            )
        return self._streams[slot]


def _run(ways: dict[int, OneWay[torch.Tensor]]) -> dict[int, torch.Tensor]:
    """Code all full chunks, one of each stream at a time."""
    parts: dict[int, list[torch.Tensor]] = {slot: [] for slot in ways}
    while ready := [slot for slot, way in ways.items() if way.ready]:
        direction: Any = ways[ready[0]].direction
        batch = torch.stack([ways[slot].take(1) for slot in ready])
        states = [ways[slot].state for slot in ready]
        outputs = direction.run(batch, StreamGroup(states))
        for slot, output in zip(ready, outputs, strict=True):
            parts[slot].append(output)
    return {
        slot: torch.cat([ways[slot].direction.empty_output(), *outputs])
        for slot, outputs in parts.items()
    }
