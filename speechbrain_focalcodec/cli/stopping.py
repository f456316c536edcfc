"""Ending a long command in one line when a signal asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from speechbrain_focalcodec.errors import FocalCodecError

if TYPE_CHECKING:
    from speechbrain_focalcodec.jobs.report import ProgressBar

__all__ = ["stopping"]

# Seconds that a batch has to end in, when a signal asks for it.
_GRACE = 10.0


@contextmanager
def stopping(bar: "ProgressBar", message: str | None) -> Iterator[None]:
    """End in one line, or none, when a signal asks for it.

    SIGTERM, which batch systems send, counts too. The current batch is
    finished first, since an exception within another library's import or
    clean-up would make that library print a traceback. Its exceptions after a
    signal count as the interruption; errors of this package are shown.

    Arguments
    ---------
    bar : ProgressBar
        Knows whether batches are being made.
    message : str, optional
        The line; nothing is said without one.

    Raises
    ------
    typer.Exit
        With 128 and the signal's number.

    Example
    -------
    >>> from speechbrain_focalcodec.jobs.report import ProgressBar
    >>> with stopping(ProgressBar(), "stopped"):
    ...     pass
    """
    asked: list[int] = []
    late: list[int] = []
    is_over = False

    def stop(number: int, frame: Any) -> None:
        if is_over:
            late.append(number)
            return
        asked.append(number)
        if len(asked) > 1 or not bar.is_at_work:
            raise KeyboardInterrupt
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, _GRACE)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    bar.check = check
    alarm = getattr(signal, "SIGALRM", None)
    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT, alarm):
            # A signal that is ignored, as in a shell's background, stays so.
            if number and signal.getsignal(number) not in (
                signal.SIG_IGN,
                None,
            ):
                before[number] = signal.signal(number, stop)
        yield
    except (KeyboardInterrupt, Exception) as error:
        is_interrupted = asked or isinstance(error, KeyboardInterrupt)
        if isinstance(error, FocalCodecError) or not is_interrupted:
            raise
        is_over = True
        if message is not None:
            typer.echo(message, err=True)
        number = asked[0] if asked else signal.SIGINT
        raise typer.Exit(128 + number) from error
    finally:
        # From here on nothing is stopped, and no alarm set: one that is left
        # would kill the process when no handler takes it any more.
        is_over = True
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in late:
            if number != alarm:
                signal.raise_signal(number)
