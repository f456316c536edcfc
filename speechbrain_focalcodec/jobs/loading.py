"""Processes that read audio ahead of the model.

If such a process dies (a codec library crashes, memory runs out), its items
are read again one by one, and only the item that crashes again is a failure.
"""

import multiprocessing.context
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
    """Results of reading, in order.

    Arguments
    ---------
    loader : Loader
        Reads them.
    work : callable
        Called with each item.
    groups : list of sequence of AudioJob
        The items; each group is read by one process.
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
                # Other groups of the pool get this error too.
                results += _one_by_one(self._work, group)
        return results


class Loader:
    """Reads headers and audio in worker processes.

    A context manager that ends them.

    Arguments
    ---------
    sample_rate : int, optional
        Sample rate to resample to, in Hz; each file's own if None.
    workers : int
        Number of processes; 0 for a thread.

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
        """Read headers: a `Header` or an error message for each item."""
        size = _HEADERS_AT_ONCE
        groups = [jobs[i : i + size] for i in range(0, len(jobs), size)]
        return Pending(self, read_header, groups)

    def sigs(self, jobs: Sequence[AudioJob]) -> Pending:
        """Read a batch: float32 [T] or an error message for each item."""
        return Pending(self, self._read_sig, [jobs] if jobs else [])

    def submit(
        self, work: Callable[[Any], Any], jobs: Sequence[Any]
    ) -> "Future[list[Any]]":
        """Call a function for each item, in one process."""
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
    """Call a function; an unexpected exception fails this item alone."""
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
    context = process_context()
    if context.get_start_method() == "forkserver":
        context = _ReaderContext()
    return ProcessPoolExecutor(
        number, mp_context=context, initializer=_begin_worker
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

    # Both may reach all processes of a run; the parent ends this one. A pool
    # waits for ever for a result that a signal has cut short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    end_with_parent()


if "forkserver" in multiprocessing.get_all_start_methods():

    class _ReaderProcess(multiprocessing.context.ForkServerProcess):
        """A process that ignores SIGTERM."""

        def terminate(self) -> None:
            self.kill()

    class _ReaderContext(multiprocessing.context.ForkServerContext):
        Process = _ReaderProcess


def read_ahead(items: Iterable[Item], number: int) -> Iterator[Item]:
    """Yield items in order; `number` items are taken ahead.

    Taking an item starts its work.

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
