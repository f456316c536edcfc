"""Batches of waveforms by duration."""

import hashlib
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
    rank_rows,
)
from speechbrain_focalcodec.errors import DataError

__all__ = ["DurationBatchSampler", "duration_loader", "signal_lengths"]

# Items that are drawn at random and then sorted by length: many batches, so
# that there is little padding, but not all items, which would put the same
# ones together in each epoch.
WINDOW = 4096


class DurationBatchSampler(Sampler):
    """Batches of at most so many samples, padding included.

    Items of similar lengths share a batch. The batches are a function of
    seed and epoch; ranks take them in turn. All ranks get equally many and
    no item is given twice: where the batches do not divide evenly, the ones
    of most items are cut in two, or with `drop_last` the last ones left out
    (as they are, up to world_size - 1, where all batches are of one item).

    Arguments
    ---------
    lengths : sequence of int
        Samples of each item.
    max_batch_samples : int
        Most samples of a batch, padding included.
    shuffle : bool
        Shuffle anew in each epoch. Otherwise the dataset's order is kept,
        but for sorting by length within windows.
    seed : int
        What the order depends on, besides the epoch.
    drop_last : bool
        Leave out batches that not all ranks have.
    window : int
        Items that are sorted by length together.
    ids : sequence of str, optional
        Ids of the items: a run that was resumed with others is refused.
    rank : int, optional
        By default that of the process.
    world_size : int, optional
        By default that of ``torch.distributed`` (or of ``torchrun``).

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
        if rank is None or world_size is None:
            rank, world_size = process_rank()
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be within 0..{world_size - 1}, got {rank}"
            )
        if seed < 0 or window < 1:
            raise ValueError("seed must not be negative, window be positive")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if len(self.lengths) < world_size:
            raise DataError(
                f"{len(self.lengths)} utterances cannot be shared by "
                f"{world_size} processes: take fewer processes or more data"
            )
        longest = int(self.lengths.max())
        if longest > max_batch_samples:
            raise DataError(
                f"an utterance of {longest} samples does not fit in a batch of "
                f"{max_batch_samples}: raise max_batch_seconds, or set "
                "max_samples, chunk_samples or segment_samples of the data"
            )
        self.rank = rank
        digest = hashlib.sha256(self.lengths.astype("<i8").tobytes())
        digest.update("\n".join(ids).encode())
        self.settings: dict[str, Any] = {
            "data": digest.hexdigest(),
            "world_size": world_size,
            "max_batch_samples": int(max_batch_samples),
            "shuffle": bool(shuffle),
            "seed": int(seed),
            "drop_last": bool(drop_last),
            "window": int(window),
        }
        self.epoch = 1
        self._planned: tuple[int, BatchPlan] | None = None

    def __len__(self) -> int:
        return len(self.plan()) // self.settings["world_size"]

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan()
        for index in range(self.rank, len(plan), self.settings["world_size"]):
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
        """The batches of the epoch, of all ranks in turn.

        Returns
        -------
        BatchPlan
            Places of the items, in batches.
        """
        if self._planned is None or self._planned[0] != self.epoch:
            use = self.settings
            count = len(self.lengths)
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
            size = use["world_size"]
            if use["drop_last"] and len(plan) >= size:
                plan = plan.resized(len(plan) // size * size)
            else:
                plan = plan.multiplied(size)
            self._planned = self.epoch, plan
        return self._planned[1]


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
        Of :func:`~speechbrain_focalcodec.data.pipeline.make_dataset`.
    max_batch_seconds : float
        Most seconds of a batch, padding included.
    seed : int
        What the order depends on, besides the epoch.
    shuffle : bool
        Shuffle anew in each epoch.
    drop_last : bool
        Leave out batches that not all ranks have.
    batch_size : int, optional
        Not used: here, so that the options of other loaders fit.
    **loader_kwargs : dict
        For ``torch.utils.data.DataLoader``: num_workers, pin_memory, ...

    Returns
    -------
    ResumableLoader
        Gives ``PaddedBatch``.

    Raises
    ------
    DataError
        If an utterance does not fit in a batch.

    Example
    -------
    >>> import numpy, soundfile
    >>> from speechbrain_focalcodec.data.manifest import write_manifest
    >>> from speechbrain_focalcodec.data.pipeline import make_dataset
    >>> tmp = getfixture("tmp_path")
    >>> entries = {}
    >>> for name, length in {"a": 8000, "b": 4000, "c": 8000}.items():
    ...     soundfile.write(tmp / f"{name}.wav", numpy.zeros(length), 16000)
    ...     entries[name] = {
    ...         "wav": "{data_root}/" + f"{name}.wav",
    ...         "num_samples": length,
    ...         "sample_rate": 16000,
    ...     }
    >>> write_manifest(tmp / "train.json", entries)
    >>> dataset = make_dataset(tmp / "train.json", tmp, 16000)
    >>> [batch.id for batch in duration_loader(dataset, 1.0)]
    [['b', 'a'], ['c']]
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
    """How long the waveforms of a dataset are, without reading them.

    Arguments
    ---------
    dataset : DynamicItemDataset
        Of :func:`~speechbrain_focalcodec.data.pipeline.make_dataset`, or
        filtered or sorted from it.

    Returns
    -------
    lengths : numpy.ndarray
        Samples of each item, int64 [items].
    sample_rate : int
        Their sample rate in Hz.

    Raises
    ------
    DataError
        If the dataset gives no waveforms.

    Example
    -------
    >>> from speechbrain.dataio.dataset import DynamicItemDataset
    >>> signal_lengths(DynamicItemDataset({"a": {"num_samples": 8000}}))
    Traceback (most recent call last):
    speechbrain_focalcodec.errors.DataError: the dataset gives no waveforms...
    """
    for item in dataset.pipeline.dynamic_items:
        reader = item.func
        if isinstance(reader, SignalReader):
            break
    else:
        raise DataError(
            "the dataset gives no waveforms whose lengths are known: make it "
            "with make_dataset"
        )
    spans = (
        entry_span(dataset.data[utt_id], reader.sample_rate)
        for utt_id in dataset.data_ids
    )
    lengths = np.fromiter((stop - start for start, stop in spans), np.int64)
    if reader.segment is not None:
        lengths = lengths.clip(max=reader.segment.segment_samples)
    return lengths, reader.sample_rate
