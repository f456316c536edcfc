"""Lines that tell of a command's work; ``--quiet`` leaves them out."""

from contextvars import ContextVar

import typer

__all__ = ["QUIET", "note"]

# Whether ``focalcodec --quiet`` was asked for.
QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def note(line: str, err: bool = False) -> None:
    """Print a line that is neither a result nor an error.

    Arguments
    ---------
    line : str
        The line.
    err : bool
        Whether to print it to standard error.

    Example
    -------
    >>> note("encode: 3 done")
    encode: 3 done
    """
    if not QUIET.get():
        typer.echo(line, err=err)
