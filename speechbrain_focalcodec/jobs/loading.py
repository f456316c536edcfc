"""Processes that read audio ahead of the model.

A process that dies (a codec library that crashes, the system's memory killer)
takes nothing with it: what it was given is tried again, item by item, and only
the item that does it again is a failure.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any, TypeVar

from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.audio import (
    AudioJob,
    read_header,
    read_sig,
)

__all__ = ["Loader", "Pending", "read_ahead", "warm_up"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[AudioJob], Result | str]

CRASHED = "the process that read it died; check that it is an audio file"

_HEADERS_AT_ONCE = 64


class Pending:
    """Results that are on their way.

    Arguments
    ---------
    loader : Loader
        Where they come from.
    work : callable
        What is done with each item.
    groups : list of list of AudioJob
        The items, as they are sent out.

    Example
    -------
    >>> with Loader(16000, workers=0) as loader:
    ...     loader.headers([AudioJob("nowhere.wav")]).result()
    ['nowhere.wav: no such file; check the path']
    """

    def __init__(
        self,
        loader: "Loader",
        work: Work,
        groups: list[Sequence[AudioJob]],
    ) -> None:
        self._loader, self._work, self._groups = loader, work, groups
        self._futures = [loader.submit(work, group) for group in groups]

    def result(self) -> list[Any]:
        """Wait for them: one for each item, in order."""
        results: list[Any] = []
        for future, group in zip(self._futures, self._groups, strict=True):
            try:
                results += future.result()
            except BrokenProcessPool:
                # Others that were under way end up here as well.
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
            _processes(workers) if workers else ThreadPoolExecutor(1)
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
        self, work: Work, jobs: Sequence[AudioJob]
    ) -> "Future[list[Any]]":
        """Give a process some work.

        Arguments
        ---------
        work : callable
            What to do with each item.
        jobs : sequence of AudioJob
            The items.

        Returns
        -------
        Future
            What it gives for each.
        """
        try:
            return _submit(self._pool, _each, work, jobs)
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = _processes(self.workers)
            return _submit(self._pool, _each, work, jobs)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def warm_up() -> None:
    """Have processes' imports begin now, beside what follows.

    Worth it before a model is loaded; a :class:`Loader` needs no such call.

    Example
    -------
    >>> warm_up()
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        _context()
        forkserver.ensure_running()


def _each(work: Work, jobs: Sequence[AudioJob]) -> list[Any]:
    return [_guarded(work, job) for job in jobs]


def _guarded(work: Work, job: AudioJob) -> Any:
    """Whatever a file provokes is that file's failure, never the run's."""
    try:
        return work(job)
    except Exception as error:
        return f"{job.path}: cannot be read ({type(error).__name__}: {error})"


def _one_by_one(work: Work, jobs: Sequence[AudioJob]) -> list[Any]:
    """Do again what died, in a process that has nothing else to do."""
    results: list[Any] = []
    pool = _processes(1)
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
            results += _submit(pool, _each, work, [job]).result()
        except BrokenProcessPool:
            results.append(f"{job.path}: {CRASHED}")
            pool.shutdown()
            pool = _processes(1)
    pool.shutdown()
    return results


def _processes(number: int) -> ProcessPoolExecutor:
    """Processes that read audio."""
    return ProcessPoolExecutor(
        number, mp_context=_context(), initializer=_begin_worker
    )


def _context() -> Any:
    """Starts processes that import this module once and are then cheap."""
    methods = multiprocessing.get_all_start_methods()
    # Never a plain fork: the model's threads would be cut off half-way.
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in methods else "spawn"
    )
    if hasattr(context, "set_forkserver_preload"):
        context.set_forkserver_preload([__name__])
    return context


def _submit(
    pool: Executor, function: Callable[..., Result], *arguments: Any
) -> "Future[Result]":
    """Give a pool some work, for which it may have to start a process."""
    with _undisturbed():
        return pool.submit(function, *arguments)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let signals wait while a process starts.

    A pool whose start of a process is cut off by an exception never hears of
    that process, removes what it needs and leaves it to die loudly.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGALRM")
    numbers = [getattr(signal, it) for it in names if hasattr(signal, it)]
    before = {
        number: signal.signal(number, lambda it, frame: received.append(it))
        for number in numbers
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


def _begin_worker() -> None:
    """One thread a process, which ends when its parent does."""
    import torch

    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(
            target=_end_with, args=[parent.sentinel], daemon=True
        ).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def read_ahead(
    items: Iterable[Item], number: int | Callable[[], int]
) -> Iterator[Item]:
    """Yield items in order while the next ones are being prepared.

    Arguments
    ---------
    items : iterable
        Items whose work starts when they are taken.
    number : int or callable
        Number of items to take ahead, or a function that gives it.

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
        while len(waiting) > (number() if callable(number) else number):
            yield waiting.popleft()
    yield from waiting
