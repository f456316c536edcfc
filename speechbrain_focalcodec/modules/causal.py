"""Left context of causal modules, from padding or from carried state."""

import torch

__all__ = ["StreamState", "extend_left"]


class StreamState:
    """What a causal model carries from one chunk to the next.

    A flat table of tensors by name, seen through a prefix: a module hands
    ``state.scope("layers.0")`` to its part and the part stores what it keeps
    under its own names.

    Arguments
    ---------
    tensors : dict, optional
        The table to share; a new, empty one by default.
    prefix : str
        Put before each name.

    Example
    -------
    >>> state = StreamState()
    >>> state.scope("conv")["context"] = torch.zeros(1, 2, 3)
    >>> sorted(state.tensors)
    ['conv.context']
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor] | None = None,
        prefix: str = "",
    ):
        self.tensors = {} if tensors is None else tensors
        self.prefix = prefix

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
        return StreamState(self.tensors, f"{self.prefix}{name}.")

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
        return self.tensors.get(self.prefix + name)

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        self.tensors[self.prefix + name] = value


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
    context = None if state is None else state.get("context")
    if context is None:
        context = x[:, :1] if replicate else torch.zeros_like(x[:, :1])
        context = context.expand(-1, size, -1)
    extended = torch.cat([context, x], dim=1)
    if state is not None:
        state["context"] = extended[:, -size:]
    return extended
