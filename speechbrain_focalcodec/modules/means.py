"""The mean over time, for windows of a longer utterance.

All that a focal block does is local, but for one mean over time. A window that
is handed the mean of its whole utterance gives what the whole utterance would.
"""

import torch

from speechbrain_focalcodec.modules.causal import StreamState

__all__ = ["MeanWanted", "TimeMeans"]


class MeanWanted(Exception):
    """A module came to a mean that is not known yet, and stopped there.

    Arguments
    ---------
    frames : torch.Tensor
        What it is the mean of, for these windows [B, T, C].

    Example
    -------
    >>> MeanWanted(torch.zeros(1, 3, 2)).frames.shape
    torch.Size([1, 3, 2])
    """

    def __init__(self, frames: torch.Tensor):
        super().__init__("a mean over time is not known yet")
        self.frames = frames


class TimeMeans(StreamState):
    """The mean over time that one focal block takes, known or wanted.

    It takes a stream's place on the way to the block's modulation.

    Arguments
    ---------
    known : torch.Tensor, optional
        The mean of the utterance of each window [B, C]; None asks for it.

    Example
    -------
    >>> TimeMeans(torch.ones(1, 4)).mean(torch.zeros(1, 9, 4)).shape
    torch.Size([1, 1, 4])
    """

    def __init__(self, known: torch.Tensor | None = None):
        super().__init__()
        self.known = known

    def scope(self, name: str) -> "TimeMeans":
        """The same for each part of a module: there is one mean.

        Arguments
        ---------
        name : str
            The part's name.

        Returns
        -------
        TimeMeans
            This object.
        """
        return self

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of the utterances that `x` holds windows of.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, C].

        Returns
        -------
        torch.Tensor
            In the type of `x`, [B, 1, C].

        Raises
        ------
        MeanWanted
            If it is not known yet.
        """
        if self.known is None:
            raise MeanWanted(x)
        return self.known.to(x.dtype)[:, None]
