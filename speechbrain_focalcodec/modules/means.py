"""Means over time for windows of a longer utterance.

All that an offline decoder does is local, but for the mean over time in each
focal block. A window that is handed the means of its whole utterance gives
what the whole utterance would.
"""

import torch

from speechbrain_focalcodec.modules.causal import StreamState

__all__ = ["MeanWanted", "TimeMeans"]


class MeanWanted(Exception):
    """A module came to a mean that is not known yet, and stopped there.

    Arguments
    ---------
    name : str
        The mean's name in the table of :class:`TimeMeans`.
    frames : torch.Tensor
        What it is the mean of, for these windows [B, T, C].

    Example
    -------
    >>> MeanWanted("layers.0.", torch.zeros(1, 3, 2)).name
    'layers.0.'
    """

    def __init__(self, name: str, frames: torch.Tensor):
        super().__init__(name)
        self.name = name
        self.frames = frames


class TimeMeans(StreamState):
    """Known means over time, by the name of the module that takes them.

    It takes a stream's place on the way through the modules.

    Arguments
    ---------
    tensors : dict, optional
        Means [B, C] by name; none by default.
    prefix : str
        Put before each name.

    Example
    -------
    >>> means = TimeMeans({"layers.0.": torch.ones(1, 4)})
    >>> means.scope("layers.0").mean(torch.zeros(1, 9, 4)).shape
    torch.Size([1, 1, 4])
    """

    def scope(self, name: str) -> "TimeMeans":
        """The same table seen from a part of the module.

        Arguments
        ---------
        name : str
            The part's name.

        Returns
        -------
        TimeMeans
            A view of this table.
        """
        return TimeMeans(self.tensors, f"{self.prefix}{name}.")

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
        known = self.get("")
        if known is None:
            raise MeanWanted(self.prefix, x)
        return known.to(x.dtype)[:, None]
