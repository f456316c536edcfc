"""Prints progress notes, which ``--quiet`` leaves out."""

from contextvars import ContextVar

import typer

__all__ = ["QUIET", "note"]

# Whether ``focalcodec --quiet`` was asked for.
QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def note(line: str, err: bool = False) -> None:
    """Print a line that is neither a result nor an error."""
    if not QUIET.get():
        typer.echo(line, err=err)
