"""The nearest frames by cosine: an exact search, block by block."""

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["nearest"]

# Similarity and place are put into one integer, the place in its lower half:
# so equal similarities have an order, and blocks are merged without loss.
_LOW = 0xFFFFFFFF


def nearest(
    query: torch.Tensor,
    blocks: Iterable[tuple[int, torch.Tensor]],
    scale: torch.Tensor,
    k: int,
) -> torch.Tensor:
    """Find the frames that are nearest by cosine.

    Arguments
    ---------
    query : torch.Tensor
        Frames to find others for, float32 [N, C].
    blocks : iterable of (int, torch.Tensor)
        Frames to look among, float32 [T, C], and the place of each block's
        first one; at least `k` frames in all.
    scale : torch.Tensor
        One over the norm of each of them [M].
    k : int
        How many to find.

    Returns
    -------
    torch.Tensor
        Their places, int64 [N, k], the nearest first; of equally near ones
        the earliest.

    Example
    -------
    >>> blocks = [(0, torch.eye(2)), (2, torch.ones(2, 2))]
    >>> scale = torch.cat([x for _, x in blocks]).norm(dim=-1).reciprocal()
    >>> nearest(torch.tensor([[0.1, 0.9]]), blocks, scale, 3)
    tensor([[1, 2, 3]])
    """
    best: Any = None
    for start, frames in blocks:
        frames = frames.to(query.device)
        # The query's own norm does not change the order.
        sims = query @ frames.T
        sims *= scale[start : start + len(frames)]
        found = _largest(sims, start, min(k, len(frames)))
        if best is not None:
            found = torch.cat([best, found], 1)
        best = found.topk(min(k, found.shape[1]), 1).values
    return _LOW - (best & _LOW)


def _largest(sims: torch.Tensor, first: int, k: int) -> torch.Tensor:
    """The `k` largest of each row [N, M] as keys [N, k], see :func:`_keys`."""
    more = min(k + 1, sims.shape[1])
    values, places = sims.topk(more, 1)
    if more == k:
        return _keys(values, places + first)
    # Equal ones at the border: topk may have taken any of them.
    tied = values[:, k - 1] == values[:, k]
    keys = _keys(values[:, :k], places[:, :k] + first)
    if bool(tied.any()):
        every = torch.arange(sims.shape[1], device=sims.device) + first
        # Some rows at a time: this takes several times their memory.
        for rows in tied.nonzero()[:, 0].split(1024):
            keys[rows] = _keys(sims[rows], every).topk(k, 1).values
    return keys


def _keys(sims: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the similarities, then of earlier places."""
    # Bits of a float as an integer of the same order; -0 is 0.
    bits = (sims + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.long() << 32) | (_LOW - places)
