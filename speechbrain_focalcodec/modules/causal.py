"""Left context of causal modules, from padding or from a stream's state."""

from collections.abc import Iterator, Sequence

import torch

from speechbrain_focalcodec.modules.ring import Ring

__all__ = ["StepState", "StreamGroup", "StreamState", "extend_left", "scope"]

# Longer contexts are kept in a ring; shorter ones are copied with each chunk.
MAX_COPIED_STEPS = 128


class StreamState:
    """State of a causal model between the chunks of a stream.

    A flat table of tensors and :class:`Ring` s by name. A module passes
    ``state.scope("layers.0")`` to its submodule, whose entries get that prefix.
    All rows of a batch run in lockstep; independent streams are joined in a
    :class:`StreamGroup`.

    Arguments
    ---------
    table : dict, optional
        The table to share; a new, empty one by default.
    prefix : str
        Put before each name.
    scratch : dict, optional
        Buffers that modules reuse; not part of the state.

    Example
    -------
    >>> state = StreamState()
    >>> state.scope("conv")["context"] = torch.zeros(1, 2, 3)
    >>> sorted(state.tensors())
    ['conv.context']
    """

    def __init__(
        self,
        table: dict[str, torch.Tensor | Ring] | None = None,
        prefix: str = "",
        scratch: dict[str, torch.Tensor] | None = None,
    ):
        self.table = {} if table is None else table
        self.prefix = prefix
        self.scratch = {} if scratch is None else scratch

    def scope(self, name: str) -> "StreamState":
        """View of the same table for a submodule."""
        return type(self)(self.table, f"{self.prefix}{name}.", self.scratch)

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor stored under `name`, or None before the first chunk."""
        kept = self.table.get(self.prefix + name)
        assert not isinstance(kept, Ring)
        return kept

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        self.table[self.prefix + name] = value

    def context(self, start: torch.Tensor) -> torch.Tensor:
        """The steps before a chunk; `start` [B, T, C] for the first chunk."""
        kept = self.get("context")
        return start if kept is None else kept

    def append(
        self,
        name: str,
        x: torch.Tensor,
        past: int,
        dim: int = 1,
        newest_first: bool = False,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add steps to the ring stored under `name`.

        Arguments
        ---------
        name : str
            Name within this scope.
        x : torch.Tensor
            New steps.
        past, dim, newest_first
            See :class:`Ring`.
        start : torch.Tensor, optional
            Put before the first step of a stream, expanded to `past` steps.

        Returns
        -------
        torch.Tensor
            The new steps after up to `past` earlier ones, valid until the next
            call; see :meth:`Ring.append`.
        """
        ring = self.table.get(self.prefix + name)
        if ring is None:
            ring = Ring.like(x, past, dim, newest_first)
            if start is not None:
                shape = list(x.shape)
                shape[dim] = past
                ring.push(start.expand(shape))
            self.table[self.prefix + name] = ring
        assert isinstance(ring, Ring)
        return ring.append(x)

    def first(self, past: int) -> torch.Tensor | None:
        """Index int64 [B] of the first valid one of `past` earlier steps.

        None if all are valid, as here; see :class:`StepState`.
        """
        return None

    def streams(self) -> Iterator[tuple[slice, "StreamState"]]:
        """Rows of the batch with a state of their own, and that state."""
        yield slice(None), self

    def tensors(self) -> dict[str, torch.Tensor]:
        """All stored tensors by name, oldest step first, for saving."""
        return {
            name: kept.last().contiguous() if isinstance(kept, Ring) else kept
            for name, kept in self.table.items()
        }

    def restore(
        self, tensors: dict[str, torch.Tensor], template: "StreamState"
    ) -> None:
        """Load the tensors of :meth:`tensors`.

        `template` is a state of the same model after a chunk. Raises ValueError
        if a tensor is missing, unknown, of another shape or not finite.
        """
        _check_names(tensors, template.table)
        table: dict[str, torch.Tensor | Ring] = {}
        steps = set()
        for name, kept in template.table.items():
            tensor = tensors[name]
            if isinstance(kept, Ring):
                fits = kept.holds(tensor)
            else:
                fits = tensor.shape == kept.shape
            like = kept.tensor if isinstance(kept, Ring) else kept
            if not fits or tensor.dtype != like.dtype:
                raise ValueError(
                    f"state: {name} is {tensor.dtype} {list(tensor.shape)}, "
                    "which does not fit this model"
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"state: {name} has NaN or infinite values")
            tensor = tensor.to(like.device)
            if isinstance(kept, Ring):
                table[name] = kept.filled(tensor)
                if kept.newest_first:  # keys and values of attention
                    steps.add(tensor.shape[kept.dim])
            else:
                table[name] = tensor.clone()
        if len(steps) > 1:
            raise ValueError("state: keys and values of unequal length")
        self.table.clear()
        self.table.update(table)

    def to(self, device: str | torch.device) -> "StreamState":
        """Move the state to a device, in place."""
        self.scratch.clear()
        for name, kept in self.table.items():
            self.table[name] = kept.to(device)
        return self


class StreamGroup(StreamState):
    """Independent streams that share a batch, one row each.

    Arguments
    ---------
    states : sequence of StreamState
        One per row.
    """

    def __init__(self, states: Sequence[StreamState]):
        super().__init__()
        self.states = states

    def scope(self, name: str) -> "StreamGroup":
        return StreamGroup([state.scope(name) for state in self.states])

    def streams(self) -> Iterator[tuple[slice, StreamState]]:
        for i, state in enumerate(self.states):
            yield slice(i, i + 1), state


class StepState(StreamState):
    """State as plain inputs and outputs of a step, for export.

    All tensors have a fixed size; steps before the start of a stream are
    masked.

    Arguments
    ---------
    kept : dict
        Output tensors of the previous step, by name.
    seen : torch.Tensor
        Number of feature frames of each stream so far, int64 [B].
    """

    def __init__(
        self,
        kept: dict[str, torch.Tensor],
        seen: torch.Tensor,
        table: dict[str, torch.Tensor | Ring] | None = None,
        prefix: str = "",
    ):
        super().__init__(table, prefix)
        self.kept = kept
        self.seen = seen

    def scope(self, name: str) -> "StepState":
        prefix = f"{self.prefix}{name}."
        return StepState(self.kept, self.seen, self.table, prefix)

    def _started(self, name: str, start: torch.Tensor) -> torch.Tensor:
        """The stored tensor, or `start` for streams that begin."""
        fresh = (self.seen == 0)[:, None, None]
        return torch.where(fresh, start, self.kept[self.prefix + name])

    def context(self, start: torch.Tensor) -> torch.Tensor:
        return self._started("context", start)

    def append(
        self,
        name: str,
        x: torch.Tensor,
        past: int,
        dim: int = 1,
        newest_first: bool = False,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if start is None:
            kept = self.kept[self.prefix + name]
        else:
            kept = self._started(name, start)
        joined = torch.cat([kept, x], dim=dim)
        self[name] = joined.narrow(dim, x.shape[dim], past)
        return joined.flip(dim) if newest_first else joined

    def first(self, past: int) -> torch.Tensor:
        return (past - self.seen).clamp(min=0)


def scope(state: StreamState | None, name: str) -> StreamState | None:
    """`state.scope(name)`, or None without a state."""
    return None if state is None else state.scope(name)


def extend_left(
    x: torch.Tensor,
    size: int,
    state: StreamState | None = None,
    replicate: bool = True,
) -> torch.Tensor:
    """Put `size` steps of context before `x` [B, T, C].

    At the start of a signal they are copies of its first step (or zeros,
    without `replicate`); later chunks of a stream get the last steps of the
    previous chunk, which are kept in `state`. Returns [B, size + T, C].
    """
    if size == 0:
        return x
    start = x[:, :1] if replicate else torch.zeros_like(x[:, :1])
    if state is None:
        return torch.cat([start.expand(-1, size, -1), x], dim=1)
    if size > MAX_COPIED_STEPS:
        parts = [
            part.append("context", x[rows], size, start=start[rows])
            for rows, part in state.streams()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    contexts = [
        part.context(start[rows].expand(-1, size, -1))
        for rows, part in state.streams()
    ]
    context = contexts[0] if len(contexts) == 1 else torch.cat(contexts)
    extended = torch.cat([context, x], dim=1)
    for rows, part in state.streams():
        # A copy: a view would keep the whole chunk in memory.
        part["context"] = extended[rows, -size:].detach().clone()
    return extended


def _check_names(got: dict, wanted: dict) -> None:
    """Raise ValueError if two tables have different names."""
    for problem, names in (
        ("misses", wanted.keys() - got.keys()),
        ("has unknown", got.keys() - wanted.keys()),
    ):
        if names:
            raise ValueError(
                f"state: {problem} {', '.join(sorted(names)[:5])}; was it "
                "saved by another model?"
            )
