"""The mean over time, for windows of a longer utterance.

Apart from one mean over time, a focal block is local. A window that gets the
mean of its whole utterance has the same output as the whole utterance.
"""

import torch

from speechbrain_focalcodec.modules.causal import StreamState

__all__ = ["MeanNeeded", "TimeMeans"]


class MeanNeeded(Exception):
    """Raised by a module that needs the mean of `frames` [B, T, C]."""

    def __init__(self, frames: torch.Tensor):
        super().__init__("a mean over time is not known yet")
        self.frames = frames


class TimeMeans(StreamState):
    """The mean over time of one focal block, in place of a stream's state.

    Arguments
    ---------
    known : torch.Tensor, optional
        Mean over the utterance of each window [B, C]; None raises
        :class:`MeanNeeded` when it is needed.
    """

    def __init__(self, known: torch.Tensor | None = None):
        super().__init__()
        self.known = known

    def scope(self, name: str) -> "TimeMeans":
        return self

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Mean [B, 1, C] for windows `x` [B, T, C], in the type of `x`."""
        if self.known is None:
            raise MeanNeeded(x)
        return self.known.to(x.dtype)[:, None]
