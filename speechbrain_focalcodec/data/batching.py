"""Samplers that batch waveforms or tokens by length, the same in each run."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import Sampler

from speechbrain_focalcodec.data.chunks import entry_span
from speechbrain_focalcodec.data.reader import SignalReader
from speechbrain_focalcodec.data.resumable import (
    ResumableLoader,
    process_rank,
)
from speechbrain_focalcodec.data.token_order import (
    BatchPlan,
    bucketed_batches,
    plain_batches,
    rank_rows,
)
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.errors import DataError

__all__ = [
    "DurationBatchSampler",
    "EpochSampler",
    "TokenBatchSampler",
    "duration_loader",
    "signal_lengths",
]

# Items that are shuffled and then sorted by length: many batches, so that
# there is little padding, but not all items, which would put the same ones
# together in each epoch.
WINDOW = 4096
_BUFFER_ROWS = 2**14
_BUFFER_TOKENS = 2**25  # about 64 MiB


class EpochSampler(Sampler, ABC):
    """Batch sampler whose batches depend on its settings and the epoch only.

    Arguments
    ---------
    rank : int, optional
        Rank; by default that of the process.
    world_size : int, optional
        Number of ranks; by default that of ``torch.distributed`` or
        ``torchrun``.
    **settings : object
        Everything else that the batches depend on, as JSON can hold it. A run
        that resumes within an epoch must have the same. They include `seed`.
    """

    def __init__(
        self, rank: int | None, world_size: int | None, **settings: Any
    ):
        if (rank is None) != (world_size is None):
            raise ValueError("rank and world_size go together")
        if rank is None or world_size is None:
            rank, world_size = process_rank()
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be within 0..{world_size - 1}, got {rank}"
            )
        if settings["seed"] < 0:
            raise ValueError(
                f"seed must not be negative, got {settings['seed']}"
            )
        self.rank = rank
        self.settings: dict[str, Any] = {"world_size": world_size, **settings}
        self.epoch = 1
        self._planned: tuple[int, BatchPlan] | None = None

    def __len__(self) -> int:
        return len(self.plan())

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan()
        return (plan[index] for index in range(len(plan)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 1) of the next iteration."""
        self.epoch = int(epoch)

    def plan(self) -> BatchPlan:
        """The batches of this rank in the epoch."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._plan()
        return self._planned[1]

    @abstractmethod
    def _plan(self) -> BatchPlan: ...


class DurationBatchSampler(EpochSampler):
    """Batches of up to a number of samples, padding included.

    Items of similar lengths share a batch. Ranks take the batches in turn and
    get equally many; no item comes twice. If the batches do not divide evenly,
    the ones of most items are cut in two, or with `drop_last` the last ones
    are left out (as they are, up to world_size - 1, if all batches are of one
    item).

    Arguments
    ---------
    lengths : sequence of int
        Samples of each item.
    max_batch_samples : int
        Maximum number of samples per batch, padding included.
    shuffle : bool
        Shuffle anew in each epoch. Otherwise the dataset's order is kept,
        except for sorting by length within windows.
    seed : int
        Seed of the order.
    drop_last : bool
        Leave out batches that not all ranks have.
    window : int
        Number of items that are sorted by length together.
    ids : sequence of str, optional
        Ids of the items: a run resumes with the same ids only.
    rank, world_size : int, optional
        As for :class:`EpochSampler`.

    Raises
    ------
    DataError
        If an item does not fit in a batch, or there are fewer items than
        ranks.

    Example
    -------
    >>> sampler = DurationBatchSampler([30, 10, 20, 30], 60, shuffle=False)
    >>> list(sampler)
    [[1, 2], [0, 3]]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        max_batch_samples: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        window: int = WINDOW,
        ids: Sequence[str] = (),
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        digest = hashlib.sha256(self.lengths.astype("<i8").tobytes())
        digest.update("\n".join(ids).encode())
        super().__init__(
            rank,
            world_size,
            data=digest.hexdigest(),
            max_batch_samples=int(max_batch_samples),
            shuffle=bool(shuffle),
            seed=int(seed),
            drop_last=bool(drop_last),
            window=int(window),
        )
        count, ranks = len(self.lengths), self.settings["world_size"]
        if count < ranks:
            raise DataError(
                f"{count} utterances cannot be shared by {ranks} processes: "
                "take fewer processes or more data"
            )
        longest = int(self.lengths.max())
        if longest > max_batch_samples:
            raise DataError(
                f"an utterance of {longest} samples does not fit in a batch of "
                f"{max_batch_samples}: raise max_batch_seconds, or set "
                "max_samples, chunk_samples or segment_samples of the data"
            )

    def _plan(self) -> BatchPlan:
        use = self.settings
        count, ranks = len(self.lengths), use["world_size"]
        key = use["seed"], self.epoch, 0
        rows = rank_rows(
            np.zeros(count, np.int64), 0, 1, *key[:2], count, use["shuffle"]
        )
        plan = bucketed_batches(
            rows,
            self.lengths,
            use["window"],
            max_length=use["max_batch_samples"],
            shuffle_key=key if use["shuffle"] else None,
        )
        if use["drop_last"] and len(plan) >= ranks:
            plan = plan.taken(np.arange(len(plan) // ranks * ranks))
        else:
            plan = plan.multiplied(ranks)
        return plan.taken(np.arange(self.rank, len(plan), ranks))


class TokenBatchSampler(EpochSampler):
    """Batches of a token dataset, which are read in the order of its files.

    Row groups are shuffled, then rows within buffers of row groups; each rank
    has its own stretch of them. All ranks get equally many batches: missing
    ones are repeated (up to world_size - 1 rows, or with `max_batch_tokens` a
    few batches), or left out with `drop_last`. Otherwise each row comes once.

    Use it through ``TokenLoader``: ``Brain.make_dataloader`` would share its
    batches among ranks once more.

    Arguments
    ---------
    dataset : TokenDataset
        The items.
    batch_size : int, optional
        Items per batch; with `max_batch_tokens` the maximum.
    max_batch_tokens : int, optional
        Maximum number of tokens per batch, padding included: items of similar
        lengths share a batch.
    shuffle : bool
        Shuffle anew in each epoch, or keep the dataset's order.
    seed : int
        Seed of the order.
    bucketing : bool, optional
        Batch items of similar lengths; by default with `max_batch_tokens`.
    buffer_rows : int, optional
        Number of rows that are shuffled, and sorted by length, together. By
        default 16384, or fewer if they are long.
    drop_last : bool
        Leave out rows for equal batches, also a last batch with fewer items.
    rank, world_size : int, optional
        As for :class:`EpochSampler`.

    Raises
    ------
    ValueError
        If the arguments contradict each other.
    DataError
        If there are no items, or one does not fit in a batch.
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
        for name, value in {
            "batch_size": batch_size,
            "max_batch_tokens": max_batch_tokens,
            "buffer_rows": buffer_rows,
            "world_size": world_size,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
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
        super().__init__(
            rank,
            world_size,
            dataset=dataset.digest,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            shuffle=bool(shuffle),
            seed=int(seed),
            bucketing=bool(bucketing),
            buffer_rows=int(buffer_rows),
            drop_last=bool(drop_last),
        )

    def _plan(self) -> BatchPlan:
        use = self.settings
        groups = self.dataset.groups
        lengths = self.dataset.lengths if use["bucketing"] else None
        plan = self._rank_plan(self.rank, groups, lengths)
        if use["max_batch_tokens"] is None:
            return plan
        # Ranks have equally many rows, but not equally many batches.
        counts = [
            len(plan)
            if rank == self.rank
            else len(self._rank_plan(rank, groups, lengths))
            for rank in range(use["world_size"])
        ]
        count = min(counts) if use["drop_last"] else max(counts)
        return plan.taken(np.arange(count) % max(len(plan), 1))

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


def duration_loader(
    dataset: Any,
    max_batch_seconds: float,
    seed: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    batch_size: int | None = None,
    **loader_kwargs: Any,
) -> ResumableLoader:
    """Make a loader of batches by duration.

    Add it to the checkpointer: it resumes exactly within an epoch. Make it
    after ``ddp_init_group``, and call ``set_epoch`` before each epoch (as
    the Brains of this package do).

    Arguments
    ---------
    dataset : DynamicItemDataset
        From :func:`~speechbrain_focalcodec.data.pipeline.make_dataset`.
    max_batch_seconds : float
        Maximum duration of a batch in seconds, padding included.
    seed : int
        Seed of the order.
    shuffle : bool
        Shuffle anew in each epoch.
    drop_last : bool
        Leave out batches that not all ranks have.
    batch_size : int, optional
        Ignored, so that the options of other loaders fit.
    **loader_kwargs : dict
        For ``torch.utils.data.DataLoader``: num_workers, pin_memory, ...

    Returns
    -------
    ResumableLoader
        Loader of ``PaddedBatch``.

    Raises
    ------
    DataError
        If an utterance does not fit in a batch.
    """
    lengths, sample_rate = signal_lengths(dataset)
    sampler = DurationBatchSampler(
        lengths,
        int(max_batch_seconds * sample_rate),
        shuffle,
        seed,
        drop_last,
        ids=dataset.data_ids,
    )
    loader_kwargs.setdefault("collate_fn", PaddedBatch)
    return ResumableLoader(dataset, sampler, after_plain=True, **loader_kwargs)


def signal_lengths(dataset: Any) -> tuple[np.ndarray, int]:
    """Samples of each waveform of a dataset, and their sample rate in Hz.

    No audio is read. `dataset` comes from
    :func:`~speechbrain_focalcodec.data.pipeline.make_dataset`, perhaps
    filtered or sorted; another one raises DataError.
    """
    for item in dataset.pipeline.dynamic_items:
        reader = item.func
        if isinstance(reader, SignalReader):
            break
    else:
        raise DataError(
            "the dataset has no waveforms of known length: make it with "
            "make_dataset"
        )
    spans = (
        entry_span(dataset.data[utt_id], reader.sample_rate)
        for utt_id in dataset.data_ids
    )
    lengths = np.fromiter((stop - start for start, stop in spans), np.int64)
    if reader.segment is not None:
        lengths = lengths.clip(max=reader.segment.segment_samples)
    return lengths, reader.sample_rate
