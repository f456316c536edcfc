"""Counts and shows the progress of long jobs."""

import sys
import time
from collections.abc import Callable, MutableSequence

from tqdm import tqdm

__all__ = ["Counts", "ProgressBar", "Report"]


class Counts:
    """Counts items, seconds and failures; ranks of one machine share a table.

    Arguments
    ---------
    rows : sequence of float, optional
        Items, seconds of audio and failures of each rank, in shared memory;
        not shared by default. Each rank writes its own row.
    rank : int
        Number of this rank's row.

    Example
    -------
    >>> counts = Counts()
    >>> counts.add(items=4, seconds=60.0)
    >>> counts.totals()
    (4, 60.0, 0)
    """

    def __init__(
        self, rows: MutableSequence[float] | None = None, rank: int = 0
    ) -> None:
        self._rows = [0.0, 0.0, 0.0] if rows is None else rows
        self._first = 3 * rank

    def add(
        self, items: int = 0, seconds: float = 0.0, failures: int = 0
    ) -> None:
        """Add to the counts of this rank."""
        for place, number in enumerate((items, seconds, failures), self._first):
            self._rows[place] += number

    def totals(self) -> tuple[int, float, int]:
        """Items, seconds of audio and failures of all ranks."""
        rows = list(self._rows)
        items, seconds, failures = (sum(rows[i::3]) for i in range(3))
        return int(items), seconds, int(failures)


class Report:
    """Receives a job's progress; this one shows nothing."""

    def begin(self, total: int, done: int) -> None:
        """The job begins.

        Arguments
        ---------
        total : int
            Number of items.
        done : int
            Number of items that an earlier run has done.
        """

    def update(self, done: int, seconds: float, failures: int) -> None:
        """A batch is done.

        Arguments
        ---------
        done : int
            Number of items done in this run.
        seconds : float
            Seconds of audio processed in this run.
        failures : int
            Number of items that failed, with those of earlier runs.
        """

    def end(self) -> None:
        """The job ends, well or not."""


class ProgressBar(Report):
    """Shows items, time left, hours of audio, real-time factor and failures.

    The real-time factor is seconds of processing per second of audio, so
    smaller is faster; its inverse is shown too. Without a terminal, as in a
    job's log, a line is written every `pause` seconds.

    Arguments
    ---------
    pause : float
        Seconds between two lines without a terminal.
    quiet : bool
        Whether to show nothing.

    Attributes
    ----------
    check : callable
        Called after each batch; an exception of it ends the job.
    is_at_work : bool
        Whether batches are being processed.
    """

    def __init__(self, pause: float = 60.0, quiet: bool = False) -> None:
        self._bar: tqdm | None = None
        self._pause = pause
        self.check: Callable[[], None] = lambda: None
        self.is_at_work = False
        self._quiet = quiet
        self.hours = 0.0
        self.rate = 0.0  # seconds of audio per second

    def begin(self, total: int, done: int) -> None:
        """Draw a bar that starts with the items of earlier runs."""
        self._since, self._done = time.monotonic(), 0
        self._printed = self._since
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="file",
            # None: no bar when stderr is not a terminal.
            disable=True if self._quiet else None,
            file=sys.stderr,
            dynamic_ncols=True,
        )
        # A disabled bar does not count.
        self._total, self._before = total, done

    def update(self, done: int, seconds: float, failures: int) -> None:
        """Update the bar."""
        self.is_at_work = True
        self.check()
        if self._bar is None:
            return
        now = time.monotonic()
        elapsed = max(now - self._since, 1e-9)
        self.hours, self.rate = seconds / 3600, seconds / elapsed
        facts = (
            f"{self.hours:.2f} h, {self.rate:.0f}x real time "
            f"(factor {1 / max(self.rate, 1e-9):.4f}), {failures} failed"
        )
        self._bar.set_postfix_str(facts, refresh=False)
        self._bar.update(done - self._done)
        self._done = done
        if (
            self._bar.disable
            and not self._quiet
            and now - self._printed >= self._pause
        ):
            self._printed = now
            counted = self._before + done
            left = (self._total - counted) * elapsed / max(done, 1)
            print(
                f"{counted} of {self._total} files, {facts}, "
                f"{tqdm.format_interval(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        """Close the bar."""
        self.is_at_work = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None
