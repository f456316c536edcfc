"""Orders the rows of an epoch and cuts them into batches.

The order depends on the seed, the epoch and the row groups. Row groups are
shuffled, and rows within a buffer of row groups, so that reading stays
sequential. Random numbers are raw bits of a named generator, which all
versions of NumPy keep.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["BatchPlan", "bucketed_batches", "plain_batches", "rank_rows"]

# Purposes of random orders.
_GROUPS, _ROWS, _BUFFERS, _BATCHES = range(4)


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batches of an epoch, in order.

    Arguments
    ---------
    rows : numpy.ndarray
        Rows of all batches, int64 [n].
    ends : numpy.ndarray
        End of each batch in `rows`, int64 [batches].
    """

    rows: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> list[int]:
        start = self.ends[index - 1] if index else 0
        return self.rows[start : self.ends[index]].tolist()

    def multiplied(self, factor: int) -> "BatchPlan":
        """The same rows in a number of batches that `factor` divides.

        The batches of most rows are cut in two, so there are up to
        ``factor - 1`` more. If there are too few rows, the last batches are
        left out.
        """
        ends = self.ends
        for _ in range(-len(self) % factor):
            sizes = np.diff(ends, prepend=0)
            widest = int(np.argmax(sizes))
            if sizes[widest] < 2:
                return self.taken(np.arange(len(self) // factor * factor))
            middle = ends[widest] - sizes[widest] // 2
            ends = np.insert(ends, widest, middle)
        return BatchPlan(self.rows, ends)

    def taken(self, which: np.ndarray) -> "BatchPlan":
        """The batches of these numbers, in their order."""
        starts = np.concatenate([[0], self.ends[:-1]])[which]
        sizes = self.ends[which] - starts
        ends = np.cumsum(sizes)
        within = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)
        return BatchPlan(self.rows[np.repeat(starts, sizes) + within], ends)


def rank_rows(
    groups: np.ndarray,
    rank: int,
    world_size: int,
    seed: int,
    epoch: int,
    buffer_rows: int,
    shuffle: bool = True,
    drop_last: bool = False,
) -> np.ndarray:
    """The rows of a rank in an epoch, in order: int64, equally many per rank.

    The rows of all row groups, in the epoch's order, are cut into equal
    stretches, one per rank.

    Arguments
    ---------
    groups : numpy.ndarray
        Row group of each row, int64 [n].
    rank, world_size : int
        Rank and number of ranks.
    seed, epoch : int
        Seed of the order.
    buffer_rows : int
        Row groups are gathered up to this number of rows and then shuffled.
    shuffle : bool
        Whether to shuffle.
    drop_last : bool
        If rows do not divide evenly: leave up to world_size - 1 of them out,
        instead of repeating as many.
    """
    count = len(groups)
    share = count // world_size
    if count % world_size and not drop_last:
        share += 1
    if share == 0:
        return np.zeros(0, np.int64)
    start = rank * share % count
    if not shuffle:
        return (start + np.arange(share)) % count
    parts = _group_parts(groups, start, share, seed, epoch)
    mixed, gathered, size = [], [], 0
    for number, part in enumerate(parts):
        gathered.append(part)
        size += len(part)
        if size >= buffer_rows or number == len(parts) - 1:
            order = _random_order(size, seed, epoch, _BUFFERS, rank, number)
            mixed.append(np.concatenate(gathered)[order])
            gathered, size = [], 0
    return np.concatenate(mixed)


def plain_batches(
    rows: np.ndarray, batch_size: int, drop_last: bool = False
) -> BatchPlan:
    """Batches of `batch_size` rows; `drop_last` leaves out a smaller one."""
    if drop_last:
        rows = rows[: len(rows) // batch_size * batch_size]
    ends = np.arange(batch_size, len(rows) + batch_size, batch_size)
    return BatchPlan(rows, np.minimum(ends, len(rows)))


def bucketed_batches(
    rows: np.ndarray,
    lengths: np.ndarray,
    window: int,
    batch_size: int | None = None,
    max_length: int | None = None,
    shuffle_key: tuple[int, int, int] | None = None,
) -> BatchPlan:
    """Batches of rows of similar lengths.

    Rows are sorted by length within windows and cut into batches, which are
    shuffled within the window.

    Arguments
    ---------
    rows : numpy.ndarray
        Row numbers, int64 [n].
    lengths : numpy.ndarray
        Length of each row of the dataset, int [n].
    window : int
        Number of rows that are sorted together.
    batch_size : int, optional
        Maximum number of rows per batch.
    max_length : int, optional
        Maximum length of a batch, padding included; a longer row is a batch.
    shuffle_key : (int, int, int), optional
        Seed, epoch and rank; if None, batches go from short to long.
    """
    batches = []
    for start in range(0, len(rows), window):
        part = rows[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        ends = _cut(lengths[part], batch_size, max_length)
        cut = [
            part[begin:end]
            for begin, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
        order = np.arange(len(cut))
        if shuffle_key is not None:
            seed, epoch, rank = shuffle_key
            order = _random_order(len(cut), seed, epoch, _BATCHES, rank, start)
        batches += [cut[i] for i in order]
    if not batches:
        return BatchPlan(rows[:0], np.zeros(0, np.int64))
    sizes = [len(batch) for batch in batches]
    return BatchPlan(np.concatenate(batches), np.cumsum(sizes))


def _random_order(
    count: int, seed: int, epoch: int, purpose: int, *where: int
) -> np.ndarray:
    key = (seed, epoch, purpose, *where, 0, 0)[:5]
    source = np.random.PCG64(np.random.SeedSequence([int(k) for k in key]))
    return np.argsort(source.random_raw(int(count)), kind="stable")


def _group_parts(
    groups: np.ndarray, start: int, share: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """`share` rows from `start` on, in the order of the shuffled groups."""
    by_group = np.argsort(groups, kind="stable")
    found = groups[by_group]
    bounds = np.flatnonzero(np.diff(found, prepend=-1, append=-1))
    order = _random_order(len(bounds) - 1, seed, epoch, _GROUPS)
    sizes = np.diff(bounds)[order]
    ends = np.cumsum(sizes)
    place = int(np.searchsorted(ends, start, side="right"))
    offset = start - int(ends[place] - sizes[place])
    parts: list[np.ndarray] = []
    while share:
        group = order[place]
        inner = _random_order(sizes[place], seed, epoch, _ROWS, group)
        inner = inner[offset : offset + share]
        parts.append(by_group[bounds[group] + inner])
        share -= len(inner)
        place, offset = (place + 1) % len(order), 0
    return parts


def _cut(
    lengths: np.ndarray, batch_size: int | None, max_length: int | None
) -> list[int]:
    """End of each batch of rows, which are sorted by length."""
    count = len(lengths)
    most = count if batch_size is None else batch_size
    if max_length is None:
        return [*range(most, count, most), count]
    ends: list[int] = []
    start = 0
    while start < count:
        fits = min(most, max_length // max(int(lengths[start]), 1)) or 1
        padded = lengths[start : start + fits].astype(np.int64)
        padded *= np.arange(1, len(padded) + 1)
        start += int(np.searchsorted(padded, max_length, side="right")) or 1
        ends.append(start)
    return ends
