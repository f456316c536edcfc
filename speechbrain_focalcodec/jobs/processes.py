"""Starts processes that read audio, and further ranks of a run.

On a CPU, several ranks with few threads are faster than one rank with many.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

from speechbrain_focalcodec.jobs.ranks import Rank, cores
from speechbrain_focalcodec.jobs.report import Counts

__all__ = [
    "LocalRanks",
    "default_processes",
    "delay_signals",
    "end_with_parent",
    "process_context",
    "start_ranks",
]

# Each rank needs memory for a model: no more than this unless asked for.
_MAX_PROCESSES = 4
# Without one of these there is no GPU, and torch need not be imported.
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_GRACE = 30.0  # seconds that a rank has to end by itself
# Imported once, by the server that forks processes.
_PRELOADED = "speechbrain_focalcodec.jobs.loading"


def process_context(*modules: str) -> Any:
    """Context of `multiprocessing` whose processes start cheaply.

    Its server starts at once, and imports modules in the background.

    Arguments
    ---------
    *modules : str
        Names of modules to import for all processes, before the first starts.
    """
    methods = multiprocessing.get_all_start_methods()
    # Never a plain fork: the model's threads would be cut off half-way.
    if "forkserver" not in methods:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED, *modules])
    # A signal to all processes must not end the server before its processes.
    resource_tracker.ensure_running()  # unblocks SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def end_with_parent() -> None:
    """End this process as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def delay_signals() -> Iterator[None]:
    """Deliver signals after a process has started.

    A pool that is interrupted by an exception while it starts a process loses
    track of it.
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


def default_processes(device: str | None) -> int:
    """Number of ranks for a run on this machine.

    Arguments
    ---------
    device : str, optional
        The model's device; the CPU when there is no GPU.

    Returns
    -------
    int
        1 on a GPU and under torchrun or srun, up to 4 on a CPU.
    """
    if "RANK" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ:
        return 1
    if device is None and any(map(os.path.exists, _GPUS)):
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return min(cores(), _MAX_PROCESSES) if device in (None, "cpu") else 1


class LocalRanks:
    """Starts the other ranks of a run on this machine, and ends them.

    Arguments
    ---------
    work : callable
        Called in each process with its :class:`Rank` and its :class:`Counts`.
        It is pickled, and returns an exit code.
    world_size : int
        Number of ranks, including this process.

    Attributes
    ----------
    counts : Counts
        Counts of rank 0; the totals are over all ranks.
    """

    def __init__(
        self, work: Callable[[Rank, Counts], int], world_size: int
    ) -> None:
        context = process_context()
        rows = context.RawArray("d", 3 * world_size)
        self.counts = Counts(rows)
        self._errors = context.SimpleQueue()
        self._processes = []
        for number in range(1, world_size):
            rank = Rank(number, world_size)
            arguments = (work, rank, Counts(rows, number), self._errors)
            process = context.Process(target=_run_rank, args=arguments)
            with delay_signals():
                process.start()
            self._processes.append(process)

    def join(self, poll: Callable[[], object]) -> list[str]:
        """Wait for all ranks; return the errors of those that failed.

        Arguments
        ---------
        poll : callable
            Called twice per second while waiting.
        """
        while running := [p.sentinel for p in self._processes if p.is_alive()]:
            wait(running, 0.5)
            poll()
        reasons = {
            rank: f"rank {rank} ended with code {process.exitcode}"
            for rank, process in enumerate(self._processes, 1)
            if process.exitcode
        }
        while not self._errors.empty():
            rank, reason = self._errors.get()
            reasons[rank] = reason
        return list(reasons.values())

    def end(self) -> None:
        """End ranks that are still running."""
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes:
            process.join(_GRACE)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def start_ranks(
    work: Callable[[Rank, Counts], int], world_size: int
) -> Iterator[LocalRanks]:
    """Start the other ranks of a run (:class:`LocalRanks`) for a block."""
    ranks = LocalRanks(work, world_size)
    try:
        yield ranks
    finally:
        ranks.end()


def _run_rank(
    work: Callable[[Rank, Counts], int], rank: Rank, counts: Counts, errors: Any
) -> None:
    """Run one rank in its process."""
    if hasattr(signal, "pthread_sigmask"):  # the server blocks SIGTERM
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    # Ctrl-C reaches all processes of a terminal; rank 0 ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        code = work(rank, counts)
    except Exception as error:
        errors.put((rank.rank, str(error) or type(error).__name__))
        code = 1
    sys.exit(code)
