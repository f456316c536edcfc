"""Telling how far a run is."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

__all__ = ["ProgressBar", "Report"]


class Report:
    """Told of a run's progress; this one keeps quiet.

    Example
    -------
    >>> report = Report()
    >>> report.begin(total=10, done=0)
    >>> report.update(done=4, seconds=60.0, failures=0)
    >>> report.end()
    """

    def begin(self, total: int, done: int) -> None:
        """A run begins.

        Arguments
        ---------
        total : int
            Items of the corpus.
        done : int
            Items that an earlier run has done.
        """

    def update(self, done: int, seconds: float, failures: int) -> None:
        """A batch is done.

        Arguments
        ---------
        done : int
            Items done in this run, by all that share it.
        seconds : float
            Seconds of audio encoded in this run.
        failures : int
            Items that failed, with those of earlier runs.
        """

    def end(self) -> None:
        """The run ends, well or not."""


class ProgressBar(Report):
    """Items, time left, hours of audio, real-time factor and failures.

    The real-time factor is hours of processing an hour of audio, so smaller is
    faster; its inverse is shown too. Without a terminal, as in a job's log, a
    line is written now and then.

    Arguments
    ---------
    pause : float
        Seconds between two lines, where there is no terminal.
    quiet : bool
        Whether to show nothing.

    Attributes
    ----------
    check : callable
        Called after each batch; what it raises ends the run.
    is_at_work : bool
        Whether batches are being made.

    Example
    -------
    >>> bar = ProgressBar()
    >>> bar.begin(total=2, done=0)
    >>> bar.update(done=2, seconds=7200.0, failures=1)
    >>> bar.end()
    >>> bar.hours
    2.0
    """

    def __init__(self, pause: float = 60.0, quiet: bool = False) -> None:
        self._bar: tqdm | None = None
        self._pause = pause
        self.check: Callable[[], None] = lambda: None
        self.is_at_work = False
        self._quiet = quiet
        self.hours = 0.0
        self.rate = 0.0  # seconds of audio a second

    def begin(self, total: int, done: int) -> None:
        """Draw an empty bar, or one with what is done."""
        self._since, self._done = time.monotonic(), 0
        self._said = self._since
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
        """Draw the bar anew, now and then."""
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
            and now - self._said >= self._pause
        ):
            self._said = now
            counted = self._before + done
            left = (self._total - counted) * elapsed / max(done, 1)
            print(
                f"{counted} of {self._total} files, {facts}, "
                f"{tqdm.format_interval(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        """Leave the bar as it is."""
        self.is_at_work = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None
