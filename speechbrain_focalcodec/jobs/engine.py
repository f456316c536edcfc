"""Runs long jobs shard by shard; audio is read ahead of processing.

A shard is published as a whole, by one rename or one append. After a kill, the
same job makes the missing shards.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from speechbrain_focalcodec.jobs.loading import Loader, Pending, read_ahead

__all__ = ["Batch", "Shard", "failure_limit", "process_shards"]


class Shard(Protocol):
    """A part of a job that is finished as a whole."""

    def batches(self) -> list[list[int]]:
        """Places of the items that are processed together."""

    def read(self, loader: Loader, places: list[int]) -> Pending | None:
        """Have a batch's audio read; None to read none ahead."""


S = TypeVar("S", bound=Shard)


class Batch(NamedTuple, Generic[S]):
    """Some items of a shard and their audio.

    Arguments
    ---------
    shard : Shard
        The shard.
    places : list of int
        Places of the items in the shard.
    audio : list, optional
        Waveform of each item; an error message (str) if reading failed.
    """

    shard: S
    places: list[int]
    audio: Sequence[Any] | None


def process_shards(
    shards: Iterable[S], loader: Loader, process: Callable[[Batch[S]], None]
) -> Iterator[S]:
    """Process shards in order; audio of the next shard is read ahead.

    Arguments
    ---------
    shards : iterable of Shard
        The shards; the next one is taken ahead of time.
    loader : Loader
        Reads audio.
    process : callable
        Processes one batch. An exception of it ends the job.

    Yields
    ------
    Shard
        Each shard when all its batches are processed.
    """

    def read() -> Iterator[tuple[S, list[int], Pending | None, bool]]:
        for shard in read_ahead(shards, 1):
            # An empty batch, so that a shard of failures is finished too.
            batches = shard.batches() or [[]]
            for places in batches:
                pending = shard.read(loader, places) if places else None
                yield shard, places, pending, places is batches[-1]

    for shard, places, pending, is_last in read_ahead(
        read(), loader.workers + 2
    ):
        audio = None if pending is None else pending.result()
        process(Batch(shard, places, audio))
        if is_last:
            yield shard


def failure_limit(total: int, share: float) -> int:
    """Number of items that may fail: a share of all, rounded up.

    Example
    -------
    >>> failure_limit(100, 0.07), failure_limit(3, 0.05)
    (7, 1)
    """
    # 0.07 * 100 is a little above 7.
    return math.ceil(share * total - 1e-6)
