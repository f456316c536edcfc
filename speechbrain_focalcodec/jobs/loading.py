"""Processes that read audio ahead of the model.

If such a process dies (a codec library crashes, memory runs out), its items
are read again one by one, and only the item that crashes again is a failure.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.audio import AudioJob, read_header, read_sig
from speechbrain_focalcodec.jobs.processes import (
    delay_signals,
    end_with_parent,
    process_context,
)

__all__ = ["Loader", "Pending", "read_ahead"]

Item = TypeVar("Item")
Result = TypeVar("Result")

CRASHED = "the process that read it died; check that it is an audio file"

_HEADERS_AT_ONCE = 64


class Pending:
    """Results that are being read.

    Arguments
    ---------
    loader : Loader
        Where they come from.
    work : callable
        What is done with each item.
    groups : list of sequence of AudioJob
        The items, as they are sent to processes.
    """

    def __init__(
        self,
        loader: "Loader",
        work: Callable[[Any], Any],
        groups: list[Sequence[Any]],
    ) -> None:
        self._work, self._groups = work, groups
        self._futures = [loader.submit(work, group) for group in groups]

    def result(self) -> list[Any]:
        """Wait for the results: one for each item, in order."""
        results: list[Any] = []
        for future, group in zip(self._futures, self._groups, strict=True):
            try:
                results += future.result()
            except BrokenProcessPool:
                # Other groups of this process end up here as well.
                results += _one_by_one(self._work, group)
        return results


class Loader:
    """Reads headers and audio in processes of its own.

    A context manager, which ends them.

    Arguments
    ---------
    sample_rate : int, optional
        Sample rate to resample to, in Hz; ``None`` for each file's own.
    workers : int
        Number of processes; 0 for a thread, which starts at once.

    Example
    -------
    >>> path = "speechbrain_focalcodec/assets/demo.flac"
    >>> with Loader(16000, workers=0) as loader:
    ...     [sig.shape for sig in loader.sigs([AudioJob(path)]).result()]
    [(96320,)]
    """

    def __init__(self, sample_rate: int | None, workers: int) -> None:
        self.workers = workers
        self._read_sig = partial(read_sig, sample_rate=sample_rate)
        self._pool: Executor = (
            _start_pool(workers) if workers else ThreadPoolExecutor(1)
        )

    def headers(self, jobs: Sequence[AudioJob]) -> Pending:
        """Have headers read.

        Arguments
        ---------
        jobs : sequence of AudioJob
            The items.

        Returns
        -------
        Pending
            A `Header` for each, or what is wrong with it (str).
        """
        size = _HEADERS_AT_ONCE
        groups = [jobs[i : i + size] for i in range(0, len(jobs), size)]
        return Pending(self, read_header, groups)

    def sigs(self, jobs: Sequence[AudioJob]) -> Pending:
        """Have audio read.

        Arguments
        ---------
        jobs : sequence of AudioJob
            The items of one batch.

        Returns
        -------
        Pending
            A waveform for each, float32 [T], or what is wrong with it (str).
        """
        return Pending(self, self._read_sig, [jobs] if jobs else [])

    def submit(
        self, work: Callable[[Any], Any], jobs: Sequence[Any]
    ) -> "Future[list[Any]]":
        """Have a function called for each item, in one process."""
        try:
            return _submit(self._pool, _call_each, work, jobs)
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = _start_pool(self.workers)
            return _submit(self._pool, _call_each, work, jobs)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Waits: multiprocessing ends a rank's queues before its pools.
        self._pool.shutdown(cancel_futures=True)


def _call_each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    return [_call(work, job) for job in jobs]


def _call(work: Callable[[Any], Any], job: Any) -> Any:
    """An unexpected exception is this file's failure, not the run's."""
    try:
        return work(job)
    except Exception as error:
        return f"{job.path}: cannot be read ({type(error).__name__}: {error})"


def _one_by_one(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """Read items again, each alone in a process."""
    results: list[Any] = []
    pool = _start_pool(1)
    try:
        _submit(pool, os.getpid).result()
    except BrokenProcessPool as error:
        raise DataError(
            "no process that reads audio can be started; guard the script's "
            'entry by `if __name__ == "__main__"`, or use a thread '
            "(--workers 0)"
        ) from error
    for job in jobs:
        try:
            results += _submit(pool, _call_each, work, [job]).result()
        except BrokenProcessPool:
            results.append(f"{job.path}: {CRASHED}")
            pool.shutdown()
            pool = _start_pool(1)
    pool.shutdown()
    return results


def _start_pool(number: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        number, mp_context=process_context(), initializer=_begin_worker
    )


def _submit(
    pool: Executor, function: Callable[..., Result], *arguments: Any
) -> "Future[Result]":
    """Call a function in a pool, which may have to start a process."""
    with delay_signals():
        return pool.submit(function, *arguments)


def _begin_worker() -> None:
    """Use one thread, and end with the parent."""
    import torch

    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    end_with_parent()


def read_ahead(items: Iterable[Item], number: int) -> Iterator[Item]:
    """Yield items in order while the next ones are being prepared.

    Arguments
    ---------
    items : iterable
        Items whose work starts when they are taken.
    number : int
        Number of items to take ahead.

    Returns
    -------
    iterator
        The items, in order.

    Example
    -------
    >>> [n for n in read_ahead(range(5), 2)]
    [0, 1, 2, 3, 4]
    """
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        while len(waiting) > number:
            yield waiting.popleft()
    yield from waiting
