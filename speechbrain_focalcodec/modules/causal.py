"""Left context of causal modules, from padding or from carried state."""

from collections.abc import Iterator, Sequence

import torch

from speechbrain_focalcodec.modules.ring import Ring

__all__ = ["StepState", "StreamGroup", "StreamState", "extend_left", "scope"]

# Longer contexts lie in a ring; shorter ones are copied with each chunk.
SHORT = 128


class StreamState:
    """What a causal model carries from one chunk to the next.

    A flat table by name, seen through a prefix: a module hands
    ``state.scope("layers.0")`` to its part and the part keeps what it needs
    under its own names: a tensor, or a :class:`Ring` of many steps. A batch
    is carried in lockstep; streams of their own pace make a
    :class:`StreamGroup`.

    Arguments
    ---------
    table : dict, optional
        The table to share; a new, empty one by default.
    prefix : str
        Put before each name.
    scratch : dict, optional
        Room that modules use again and again; nothing that is carried.

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
        """The same table seen from a part of the module.

        Arguments
        ---------
        name : str
            The part's name.

        Returns
        -------
        StreamState
            A view; what is stored in it is stored here.
        """
        prefix = f"{self.prefix}{name}."
        return StreamState(self.table, prefix, self.scratch)

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor kept under `name`, or None before the first chunk.

        Arguments
        ---------
        name : str
            Name within this scope.

        Returns
        -------
        torch.Tensor or None
            What was stored last.
        """
        kept = self.table.get(self.prefix + name)
        assert not isinstance(kept, Ring)
        return kept

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        self.table[self.prefix + name] = value

    def context(self, start: torch.Tensor) -> torch.Tensor:
        """The steps before a chunk.

        Arguments
        ---------
        start : torch.Tensor
            What they are at the start of a stream [B, T, C].

        Returns
        -------
        torch.Tensor
            [B, T, C].
        """
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
        """Add steps to the ring kept under `name`.

        Arguments
        ---------
        name : str
            Name within this scope.
        x : torch.Tensor
            New steps.
        past, dim, newest_first
            See :class:`Ring`.
        start : torch.Tensor, optional
            What stands before the first step of a stream, to be expanded to
            `past` steps; nothing by default.

        Returns
        -------
        torch.Tensor
            The new steps with up to `past` before them, valid until the next
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
        """Where the earlier steps that :meth:`append` gave begin.

        Arguments
        ---------
        past : int
            How many it gave.

        Returns
        -------
        torch.Tensor or None
            The first one that is a step of the stream, int64 [B]; here None:
            all are.
        """
        return None

    def streams(self) -> Iterator[tuple[slice, "StreamState"]]:
        """The parts of a batch that have a state of their own.

        Returns
        -------
        iterator of (slice, StreamState)
            Rows of the batch and their state: here all.
        """
        yield slice(None), self

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is kept, oldest step first, to be saved.

        Returns
        -------
        dict
            Tensors by name.
        """
        return {
            name: kept.last().contiguous() if isinstance(kept, Ring) else kept
            for name, kept in self.table.items()
        }

    def restore(
        self, tensors: dict[str, torch.Tensor], template: "StreamState"
    ) -> None:
        """Take over what :meth:`tensors` gave.

        Arguments
        ---------
        tensors : dict
            Tensors by name.
        template : StreamState
            Of the same model, after a chunk: what must be there.

        Raises
        ------
        ValueError
            If a tensor is missing, unknown or does not fit.
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
        """Move all that is kept to a device.

        Arguments
        ---------
        device : str or torch.device
            Where the model is.

        Returns
        -------
        StreamState
            Itself.
        """
        self.scratch.clear()
        for name, kept in self.table.items():
            self.table[name] = kept.to(device)
        return self


class StreamGroup(StreamState):
    """Streams of their own pace that share a batch, one row each.

    Arguments
    ---------
    states : sequence of StreamState
        One for each row of the batch.

    Example
    -------
    >>> group = StreamGroup([StreamState(), StreamState()])
    >>> extend_left(torch.ones(2, 3, 1), 2, group).shape
    torch.Size([2, 5, 1])
    """

    def __init__(self, states: Sequence[StreamState]):
        super().__init__()
        self.states = states

    def scope(self, name: str) -> "StreamGroup":
        """See :meth:`StreamState.scope`.

        Arguments
        ---------
        name : str
            The part's name.

        Returns
        -------
        StreamGroup
            The part's view of each stream.
        """
        return StreamGroup([state.scope(name) for state in self.states])

    def streams(self) -> Iterator[tuple[slice, StreamState]]:
        """See :meth:`StreamState.streams`.

        Returns
        -------
        iterator of (slice, StreamState)
            Each row with its state.
        """
        for i, state in enumerate(self.states):
            yield slice(i, i + 1), state


class StepState(StreamState):
    """State as plain inputs and outputs of a step, for export.

    All of it has a fixed size; what has not been seen yet is masked.

    Arguments
    ---------
    kept : dict
        What the step before gave, by name.
    seen : torch.Tensor
        Feature frames of each stream so far, int64 [B].

    Example
    -------
    >>> kept = {"context": torch.zeros(1, 2, 1)}
    >>> state = StepState(kept, torch.tensor([0]))
    >>> extend_left(torch.ones(1, 3, 1), 2, state).flatten()
    tensor([1., 1., 1., 1., 1.])
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
        """See :meth:`StreamState.scope`.

        Arguments
        ---------
        name : str
            The part's name.

        Returns
        -------
        StepState
            A view.
        """
        prefix = f"{self.prefix}{name}."
        return StepState(self.kept, self.seen, self.table, prefix)

    def _started(self, name: str, start: torch.Tensor) -> torch.Tensor:
        """What is kept, or its start in streams that begin."""
        fresh = (self.seen == 0)[:, None, None]
        return torch.where(fresh, start, self.kept[self.prefix + name])

    def context(self, start: torch.Tensor) -> torch.Tensor:
        """See :meth:`StreamState.context`.

        Arguments
        ---------
        start : torch.Tensor
            What they are at the start of a stream [B, T, C].

        Returns
        -------
        torch.Tensor
            [B, T, C].
        """
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
        """See :meth:`StreamState.append`.

        Arguments
        ---------
        name, x, past, dim, newest_first, start
            See :meth:`StreamState.append`.

        Returns
        -------
        torch.Tensor
            The new steps with `past` before them.
        """
        if start is None:
            kept = self.kept[self.prefix + name]
        else:
            kept = self._started(name, start)
        joined = torch.cat([kept, x], dim=dim)
        self[name] = joined.narrow(dim, x.shape[dim], past)
        return joined.flip(dim) if newest_first else joined

    def first(self, past: int) -> torch.Tensor:
        """See :meth:`StreamState.first`.

        Arguments
        ---------
        past : int
            How many steps there are.

        Returns
        -------
        torch.Tensor
            int64 [B].
        """
        return (past - self.seen).clamp(min=0)


def scope(state: StreamState | None, name: str) -> StreamState | None:
    """`state.scope(name)`, or None when nothing is carried.

    Arguments
    ---------
    state : StreamState, optional
        Carried state.
    name : str
        The part's name.

    Returns
    -------
    StreamState or None
        The part's view.
    """
    return None if state is None else state.scope(name)


def extend_left(
    x: torch.Tensor,
    size: int,
    state: StreamState | None = None,
    replicate: bool = True,
) -> torch.Tensor:
    """Put `size` steps of context before `x`.

    At the start of a signal they are copies of its first step (or zeros);
    later chunks of a stream get the last steps of the chunk before.

    Arguments
    ---------
    x : torch.Tensor
        Batch [B, T, C].
    size : int
        Number of steps to prepend.
    state : StreamState, optional
        Where the context is kept between chunks.
    replicate : bool
        Whether a signal starts with copies of its first step; else zeros.

    Returns
    -------
    torch.Tensor
        [B, size + T, C].

    Example
    -------
    >>> state = StreamState()
    >>> extend_left(torch.tensor([[[1.0], [2.0]]]), 2, state).flatten()
    tensor([1., 1., 1., 2.])
    >>> extend_left(torch.tensor([[[3.0], [4.0]]]), 2, state).flatten()
    tensor([1., 2., 3., 4.])
    """
    if size == 0:
        return x
    start = x[:, :1] if replicate else torch.zeros_like(x[:, :1])
    if state is None:
        return torch.cat([start.expand(-1, size, -1), x], dim=1)
    if size > SHORT:
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
        # A copy: a view would keep all of the chunk.
        part["context"] = extended[rows, -size:].detach().clone()
    return extended


def _check_names(got: dict, wanted: dict) -> None:
    """Refuse tables that do not hold the same names."""
    for what, names in (
        ("misses", wanted.keys() - got.keys()),
        ("has unknown", got.keys() - wanted.keys()),
    ):
        if names:
            raise ValueError(
                f"state: {what} {', '.join(sorted(names)[:5])}; was it saved "
                "by another model?"
            )
