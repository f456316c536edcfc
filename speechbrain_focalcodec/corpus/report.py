"""Telling how far a run is."""

import sys
import time

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
    faster; its inverse is shown too.

    Arguments
    ---------
    always : bool
        Whether to draw when stderr is not a terminal.

    Example
    -------
    >>> bar = ProgressBar()
    >>> bar.begin(total=2, done=0)
    >>> bar.update(done=2, seconds=7200.0, failures=1)
    >>> bar.end()
    >>> bar.hours
    2.0
    """

    def __init__(self, always: bool = False) -> None:
        # None: no bar when stderr is not a terminal.
        self._disable = False if always else None
        self._bar: tqdm | None = None
        self.hours = 0.0
        self.rate = 0.0  # seconds of audio a second

    def begin(self, total: int, done: int) -> None:
        """Draw an empty bar, or one with what is done."""
        self._since, self._done = time.monotonic(), 0
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="file",
            disable=self._disable,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def update(self, done: int, seconds: float, failures: int) -> None:
        """Draw the bar anew, now and then."""
        if self._bar is None:
            return
        elapsed = max(time.monotonic() - self._since, 1e-9)
        self.hours, self.rate = seconds / 3600, seconds / elapsed
        self._bar.set_postfix_str(
            f"{self.hours:.2f} h, {self.rate:.0f}x real time "
            f"(factor {1 / max(self.rate, 1e-9):.4f}), {failures} failed",
            refresh=False,
        )
        self._bar.update(done - self._done)
        self._done = done

    def end(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
