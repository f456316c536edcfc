"""Ending a long command in one line when a signal asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from speechbrain_focalcodec.corpus.report import ProgressBar

__all__ = ["stopping"]

# Seconds that a batch has to end in, when a signal asks for it.
_GRACE = 10.0


class _Stopped(KeyboardInterrupt):
    """A signal has asked for the end; SIGTERM comes from batch systems."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def stopping(bar: "ProgressBar", message: str | None) -> Iterator[None]:
    """End in one line, or none, when a signal asks for it.

    Work under way ends with its batch: an exception in the midst of another
    library's import or clean-up makes that one complain.

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
    >>> from speechbrain_focalcodec.corpus.report import ProgressBar
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
        if asked or not bar.is_at_work:
            raise _Stopped(asked[0] if asked else number)
        asked.append(number)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, _GRACE)

    def check() -> None:
        if asked:
            raise _Stopped(asked[0])

    bar.check = check
    alarm = getattr(signal, "SIGALRM", None)
    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT, alarm):
            # What is ignored, as in a shell's background, stays so.
            if number and signal.getsignal(number) not in (
                signal.SIG_IGN,
                None,
            ):
                before[number] = signal.signal(number, stop)
        yield
    except KeyboardInterrupt as error:
        if message is not None:
            typer.echo(message, err=True)
        raise typer.Exit(
            128 + getattr(error, "number", signal.SIGINT)
        ) from error
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
