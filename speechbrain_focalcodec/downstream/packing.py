"""Packs several sequences into one row, so that batches have little padding.

The attention mask is causal within a sequence and closed between sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Packing", "additive_mask", "pack", "spans"]


def pack(
    lengths: Sequence[int], max_length: int | None = None
) -> list[list[int]]:
    """Assign items to rows: longest first, into the first row with space.

    Returns the indices of the items in each row. Raises a ValueError if there
    are no items, or one is empty or longer than `max_length`, which by default
    is the length of the longest item.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(
            f"lengths must be positive and at least one, got {list(lengths)}"
        )
    longest = max(lengths)
    if max_length is None:
        max_length = longest
    elif longest > max_length:
        raise ValueError(
            f"an item of {longest} does not fit into a row of max_length="
            f"{max_length}: raise it, or leave longer items out"
        )
    rows: list[list[int]] = []
    free: list[int] = []
    # The sort is stable, so equal lengths stay in order.
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        for row, left in enumerate(free):
            if length <= left:
                rows[row].append(item)
                free[row] -= length
                break
        else:
            rows.append([item])
            free.append(max_length - length)
    return rows


def spans(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Concatenated ranges: `lengths[i]` numbers from `starts[i]` on."""
    first = lengths.cumsum(0) - lengths
    offsets = torch.repeat_interleave(starts - first, lengths)
    return offsets + torch.arange(len(offsets), device=lengths.device)


def additive_mask(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Attention mask [R, 1, N, K] from `seen`, bool [R, N, K].

    Every query must see at least one key: softmax over nothing is NaN.
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~seen, -torch.inf)[:, None]


@dataclass(frozen=True)
class Packing:
    """Positions of a batch's sequences in packed rows.

    `items` is the sequence index of each position, int64 [R, L] (-1 is
    padding). `starts` is the first position of each sequence, counted over all
    rows, int64 [B].
    """

    items: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def of(
        cls, lengths: torch.Tensor, max_length: int | None = None
    ) -> "Packing":
        """Pack sequences of absolute `lengths` [B] into rows."""
        device, lengths = lengths.device, lengths.cpu()
        known = lengths.tolist()
        rows = pack(known, max_length)
        width = max(sum(known[item] for item in row) for row in rows)
        starts = torch.empty_like(lengths)
        for number, row in enumerate(rows):
            place = number * width
            for item in row:
                starts[item] = place
                place += known[item]
        places = spans(starts, lengths)
        items = torch.full((len(rows) * width,), -1)
        items[places] = torch.repeat_interleave(
            torch.arange(len(known)), lengths
        )
        return cls(
            items.view(-1, width).to(device),
            starts.to(device),
        )

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Causal mask within sequences, to add to scores [R, H, L, L]."""
        same = self.items[:, :, None] == self.items[:, None, :]
        return additive_mask(same.tril(), dtype)
