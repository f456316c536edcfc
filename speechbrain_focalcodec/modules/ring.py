"""A ring buffer of the last steps of a stream, readable as one view."""

import torch

__all__ = ["Ring"]

# Steps that can be added without copying earlier ones.
SLACK = 32


class Ring:
    """The last steps of a stream.

    Each step is written twice, one turn apart, so the last steps are always
    contiguous and adding a chunk costs no more than the chunk.

    Arguments
    ---------
    tensor : torch.Tensor
        Room for two turns along `dim`.
    past : int
        Earlier steps that are seen with new ones.
    dim : int
        Time dimension.
    newest_first : bool
        Whether steps are stored in reversed order.

    Example
    -------
    >>> ring = Ring.like(torch.zeros(1, 2), past=3)
    >>> ring.append(torch.tensor([[3, 4]]))
    tensor([[3., 4.]])
    >>> ring.append(torch.tensor([[5, 6, 7]]))
    tensor([[3., 4., 5., 6., 7.]])
    >>> ring.append(torch.tensor([[8]]))
    tensor([[5., 6., 7., 8.]])
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        past: int,
        dim: int = 1,
        newest_first: bool = False,
    ):
        self.tensor = tensor
        self.past = past
        self.dim = dim
        self.newest_first = newest_first
        self.turn = tensor.shape[dim] // 2
        self.seen = 0

    @classmethod
    def like(
        cls,
        x: torch.Tensor,
        past: int,
        dim: int = 1,
        newest_first: bool = False,
    ) -> "Ring":
        """An empty ring for steps with the type, device and shape of `x`."""
        shape = list(x.shape)
        shape[dim] = 2 * (past + SLACK)
        # Written in place in any mode later.
        with torch.inference_mode(False):
            tensor = torch.zeros(shape, dtype=x.dtype, device=x.device)
        return cls(tensor, past, dim, newest_first)

    def push(self, x: torch.Tensor) -> None:
        """Add steps, oldest first."""
        steps = x.shape[self.dim]
        self.seen += steps
        if steps > self.turn:
            x = x.narrow(self.dim, steps - self.turn, self.turn)
            steps = self.turn
        if self.newest_first:
            x = x.flip(self.dim)
            start = -self.seen % self.turn
        else:
            start = (self.seen - steps) % self.turn
        first = min(steps, self.turn - start)
        for at, piece in (
            (start, x.narrow(self.dim, 0, first)),
            (0, x.narrow(self.dim, first, steps - first)),
        ):
            size = piece.shape[self.dim]
            if size:
                self.tensor.narrow(self.dim, at, size).copy_(piece)
                self.tensor.narrow(self.dim, at + self.turn, size).copy_(piece)

    def last(self, steps: int | None = None) -> torch.Tensor:
        """View of the last steps.

        With `steps`, at most that many, in the ring's order; else `past`,
        oldest first.
        """
        size = min(self.seen, self.past if steps is None else steps)
        start = -self.seen if self.newest_first else self.seen - size
        view = self.tensor.narrow(self.dim, start % self.turn, size)
        if steps is None and self.newest_first:
            return view.flip(self.dim)
        return view

    def whole(self) -> torch.Tensor:
        """Zeros of the size of `past` steps."""
        return torch.zeros_like(self.tensor.narrow(self.dim, 0, self.past))

    def append(self, x: torch.Tensor) -> torch.Tensor:
        """Add steps, oldest first; return them with up to `past` earlier ones.

        The result is in the ring's order: a view that is valid until the next
        call, or a copy if there is no room or gradients are recorded.
        """
        steps = x.shape[self.dim]
        if steps <= self.turn - self.past and not torch.is_grad_enabled():
            self.push(x)
            return self.last(self.past + steps)
        before = self.last(self.past)
        if self.newest_first:
            joined = torch.cat([x.flip(self.dim), before], dim=self.dim)
        else:
            joined = torch.cat([before, x], dim=self.dim)
        self.push(x.detach())
        return joined

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor has the shape of :meth:`last` of such a ring."""
        if tensor.ndim != self.tensor.ndim:
            return False
        shape = list(self.tensor.shape)
        shape[self.dim] = tensor.shape[self.dim]
        return (
            list(tensor.shape) == shape and tensor.shape[self.dim] <= self.past
        )

    def filled(self, tensor: torch.Tensor) -> "Ring":
        """A new ring of the same kind with these steps, oldest first."""
        ring = Ring.like(tensor, self.past, self.dim, self.newest_first)
        ring.push(tensor)
        return ring

    def to(self, device: str | torch.device) -> "Ring":
        """Move to a device, in place."""
        with torch.inference_mode(False):
            self.tensor = self.tensor.to(device)
        return self
