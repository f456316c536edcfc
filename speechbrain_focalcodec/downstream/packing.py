"""Several sequences in one row, so that little is computed for padding.

Sequences of a row see nothing of each other: the attention mask is causal
within one and closed between two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Packing", "additive_mask", "pack", "spans"]


def pack(
    lengths: Sequence[int], max_length: int | None = None
) -> list[list[int]]:
    """Put items into rows: first fit, the longest first.

    Arguments
    ---------
    lengths : sequence of int
        Length of each item.
    max_length : int, optional
        Most that a row holds; by default the longest item's length.

    Returns
    -------
    list of list of int
        Numbers of the items of each row, in the order that they stand there.

    Raises
    ------
    ValueError
        If there is no item, or one that is empty or longer than a row.

    Example
    -------
    >>> pack([3, 9, 5, 1])
    [[1], [2, 0, 3]]
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
    room: list[int] = []
    # The sort is stable, so equal lengths stay in order.
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        for row, left in enumerate(room):
            if length <= left:
                rows[row].append(item)
                room[row] -= length
                break
        else:
            rows.append([item])
            room.append(max_length - length)
    return rows


def spans(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """All numbers from each start on, as many as each length.

    Arguments
    ---------
    starts : torch.Tensor
        int64 [B].
    lengths : torch.Tensor
        int64 [B], of which some may be 0.

    Returns
    -------
    torch.Tensor
        int64 [sum of lengths].

    Example
    -------
    >>> spans(torch.tensor([5, 0]), torch.tensor([3, 2]))
    tensor([5, 6, 7, 0, 1])
    """
    first = lengths.cumsum(0) - lengths
    offsets = torch.repeat_interleave(starts - first, lengths)
    return offsets + torch.arange(len(offsets), device=lengths.device)


def additive_mask(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What attention adds to its scores so that some weigh nothing.

    Each query must see a key, be it only itself: a softmax over nothing is
    not a number.

    Arguments
    ---------
    seen : torch.Tensor
        bool [R, N, K]: whether a query sees a key.
    dtype : torch.dtype
        Of the scores.

    Returns
    -------
    torch.Tensor
        [R, 1, N, K], for all heads.

    Example
    -------
    >>> additive_mask(torch.tensor([[[True, False]]]), torch.float32)
    tensor([[[[0., -inf]]]])
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~seen, -torch.inf)[:, None]


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a batch stand in rows.

    Arguments
    ---------
    items : torch.Tensor
        Which sequence a place belongs to, int64 [R, L]; -1 is padding.
    starts : torch.Tensor
        The first place of each sequence, counted over all rows, int64 [B].

    Example
    -------
    >>> packing = Packing.of(torch.tensor([2, 4, 1]))
    >>> packing.items
    tensor([[ 1,  1,  1,  1],
            [ 0,  0,  2, -1]])
    >>> packing.starts
    tensor([4, 0, 6])
    """

    items: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def of(
        cls, lengths: torch.Tensor, max_length: int | None = None
    ) -> "Packing":
        """Pack sequences.

        Arguments
        ---------
        lengths : torch.Tensor
            int64 [B].
        max_length : int, optional
            Most that a row holds, see :func:`pack`.

        Returns
        -------
        Packing
            On the device of `lengths`.
        """
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
        """Which place sees which: none of another sequence, none to come.

        Arguments
        ---------
        dtype : torch.dtype
            Of the attention's scores.

        Returns
        -------
        torch.Tensor
            To be added to the scores, [R, 1, L, L].
        """
        same = self.items[:, :, None] == self.items[:, None, :]
        return additive_mask(same.tril(), dtype)
