"""Which utterances of a token dataset make a batch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from speechbrain_focalcodec.data.resumable import process_rank
from speechbrain_focalcodec.data.token_order import (
    BatchPlan,
    bucketed_batches,
    plain_batches,
    rank_rows,
)
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.errors import DataError

__all__ = ["TokenBatchSampler"]

_BUFFER_ROWS = 2**14
_BUFFER_TOKENS = 2**25  # some 64 MiB


class TokenBatchSampler(Sampler):
    """Batches of a token dataset: a pure function of seed and epoch.

    Row groups are shuffled, then rows within buffers of row groups; each rank
    has its own stretch of them. All ranks get equally many batches: what is
    missing is given again (up to world_size - 1 rows, or with
    `max_batch_tokens` a few batches), or left out with `drop_last`.
    Otherwise each row is given once.

    Use it by way of ``TokenLoader``: ``Brain.make_dataloader`` would share
    its batches out among ranks once more.

    Arguments
    ---------
    dataset : TokenDataset
        The items.
    batch_size : int, optional
        Items of a batch; with `max_batch_tokens` the most.
    max_batch_tokens : int, optional
        Most tokens of a batch, padding included: items of similar lengths are
        put together, in batches of different sizes.
    shuffle : bool
        Shuffle anew in each epoch, or keep the dataset's order.
    seed : int
        What the order depends on, besides the epoch.
    bucketing : bool, optional
        Put items of similar lengths together. By default with
        `max_batch_tokens` only.
    buffer_rows : int, optional
        Rows that are mixed, and sorted by length, together. By default 16384,
        or fewer when they are long.
    drop_last : bool
        Leave out rows for equal batches, also a last batch with fewer items.
    rank : int, optional
        By default that of the process.
    world_size : int, optional
        By default that of ``torch.distributed`` (or of ``torchrun``).

    Raises
    ------
    ValueError
        If the arguments contradict each other.
    DataError
        If there are no items, or one does not fit in a batch.

    Example
    -------
    >>> from make_tokens import make_tokens  # in tests/
    >>> folder = make_tokens(getfixture("tmp_path") / "tokens")
    >>> dataset = TokenDataset(folder)
    >>> sampler = TokenBatchSampler(dataset, max_batch_tokens=200)
    >>> batches = list(sampler)
    >>> sorted(i for batch in batches for i in batch) == [*range(len(dataset))]
    True
    >>> bool(max(len(b) * max(dataset.lengths[b]) for b in batches) <= 200)
    True
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        bucketing: bool | None = None,
        buffer_rows: int | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        if rank is None or world_size is None:
            if rank is not None or world_size is not None:
                raise ValueError("rank and world_size go together")
            rank, world_size = process_rank()
        _check_numbers(
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            buffer_rows=buffer_rows,
            world_size=world_size,
        )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be within 0..{world_size - 1}, got {rank}"
            )
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if batch_size is None and max_batch_tokens is None:
            raise ValueError("give batch_size or max_batch_tokens")
        if bucketing is None:
            bucketing = max_batch_tokens is not None
        if max_batch_tokens is not None and not bucketing:
            raise ValueError("max_batch_tokens needs bucketing")
        if not len(dataset):
            raise DataError("the token dataset has no items: filter it less")
        if max_batch_tokens is not None:
            longest = int(dataset.lengths.max())
            if longest > max_batch_tokens:
                raise DataError(
                    f"an item of {longest} tokens does not fit in a batch of "
                    f"max_batch_tokens={max_batch_tokens}: raise it, or keep "
                    "shorter items with dataset.filtered_sorted("
                    'key_max_value={"num_tokens": ...})'
                )
        if buffer_rows is None:
            mean = dataset.info.tokens / max(dataset.info.rows, 1)
            buffer_rows = int(_BUFFER_TOKENS / max(mean, 1))
            buffer_rows = min(max(buffer_rows, 1), _BUFFER_ROWS)
        if batch_size is not None:  # windows of whole batches
            buffer_rows += -buffer_rows % batch_size
        self.dataset = dataset
        self.rank = rank
        self.settings: dict[str, Any] = {
            "dataset": dataset.digest,
            "world_size": world_size,
            "batch_size": batch_size,
            "max_batch_tokens": max_batch_tokens,
            "shuffle": bool(shuffle),
            "seed": int(seed),
            "bucketing": bool(bucketing),
            "buffer_rows": int(buffer_rows),
            "drop_last": bool(drop_last),
        }
        self.epoch = 1
        self._planned: tuple[int, BatchPlan] | None = None

    def __len__(self) -> int:
        return len(self.plan())

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan()
        for index in range(len(plan)):
            yield plan[index]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives.

        Arguments
        ---------
        epoch : int
            The epoch; the first is 1.
        """
        self.epoch = int(epoch)

    def plan(self) -> BatchPlan:
        """The batches of the epoch, of this rank.

        Returns
        -------
        BatchPlan
            Indices of the dataset, in batches.
        """
        if self._planned is None or self._planned[0] != self.epoch:
            groups = self.dataset.groups
            lengths = None
            if self.settings["bucketing"]:
                lengths = self.dataset.lengths
            plan = self._rank_plan(self.rank, groups, lengths)
            if self.settings["max_batch_tokens"] is not None:
                # The ranks' rows are equally many, their batches are not.
                counts = [
                    len(plan)
                    if rank == self.rank
                    else len(self._rank_plan(rank, groups, lengths))
                    for rank in range(self.settings["world_size"])
                ]
                few = self.settings["drop_last"]
                plan = plan.resized(min(counts) if few else max(counts))
            self._planned = self.epoch, plan
        return self._planned[1]

    def _rank_plan(self, rank: int, groups: Any, lengths: Any) -> BatchPlan:
        use = self.settings
        rows = rank_rows(
            groups,
            rank,
            use["world_size"],
            use["seed"],
            self.epoch,
            use["buffer_rows"],
            use["shuffle"],
            use["drop_last"],
        )
        if lengths is None:
            return plain_batches(rows, use["batch_size"], use["drop_last"])
        if use["drop_last"] and use["max_batch_tokens"] is None:
            rows = rows[: len(rows) // use["batch_size"] * use["batch_size"]]
        return bucketed_batches(
            rows,
            lengths,
            use["buffer_rows"],
            use["batch_size"],
            use["max_batch_tokens"],
            (use["seed"], self.epoch, rank) if use["shuffle"] else None,
        )


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
