"""Exact search for the nearest frames by cosine, in blocks."""

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["nearest"]

# A key has the similarity in its upper half and the index in its lower half, so
# equal similarities are ordered and blocks are merged exactly.
_LOW = 0xFFFFFFFF


def nearest(
    query: torch.Tensor,
    blocks: Iterable[tuple[int, torch.Tensor]],
    scale: torch.Tensor,
    k: int,
) -> torch.Tensor:
    """Indices, int64 [N, k], of the nearest frames by cosine, nearest first.

    Of equally near frames, the earliest come first. `query` is float32 [N, C].
    `blocks` are pairs of the index of a block's first frame and its frames,
    float32 [T, C], at least `k` in all; `scale` is the inverse norm of each
    frame [M].
    """
    best: Any = None
    for start, frames in blocks:
        frames = frames.to(query.device)
        # The norm of the query does not change the order.
        sims = query @ frames.T
        sims *= scale[start : start + len(frames)]
        found = _largest(sims, start, min(k, len(frames)))
        if best is not None:
            found = torch.cat([best, found], 1)
        best = found.topk(min(k, found.shape[1]), 1).values
    return _LOW - (best & _LOW)


def _largest(sims: torch.Tensor, first: int, k: int) -> torch.Tensor:
    """Keys [N, k] of the `k` largest of each row [N, M]."""
    more = min(k + 1, sims.shape[1])
    values, places = sims.topk(more, 1)
    if more == k:
        return _keys(values, places + first)
    # topk may return any of several equal values at the border.
    tied = values[:, k - 1] == values[:, k]
    keys = _keys(values[:, :k], places[:, :k] + first)
    if bool(tied.any()):
        every = torch.arange(sims.shape[1], device=sims.device) + first
        # In blocks of rows: this needs several times their memory.
        for rows in tied.nonzero()[:, 0].split(1024):
            keys[rows] = _keys(sims[rows], every).topk(k, 1).values
    return keys


def _keys(sims: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Integers ordered by similarity, then by earlier index."""
    # Bits of a float as an integer of the same order; -0 is 0.
    bits = (sims + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.long() << 32) | (_LOW - places)
