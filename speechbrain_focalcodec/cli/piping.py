"""Standard input and output in place of files, both named ``-``."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speechbrain_focalcodec.errors import FocalCodecError

__all__ = ["PIPE", "reading", "writing"]

PIPE = Path("-")


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Give a file to read: the path, or a copy of standard input.

    Arguments
    ---------
    path : Path
        The file, or ``-``.

    Yields
    ------
    Path
        A file that can be read more than once.

    Raises
    ------
    FocalCodecError
        What the block raises; it names standard input, not the copy.

    Example
    -------
    >>> with reading(Path("a.wav")) as path:
    ...     path.name
    'a.wav'
    """
    if path != PIPE:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "standard input")
        with open(copy, "wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        try:
            yield copy
        except FocalCodecError as error:
            message = str(error).replace(str(copy), copy.name)
            raise type(error)(message) from error


@contextmanager
def writing(path: Path, suffix: str) -> Iterator[Path]:
    """Give a file to write: the path, or one that goes to standard output.

    Arguments
    ---------
    path : Path
        The file, or ``-``.
    suffix : str
        Gives the format of what goes to standard output.

    Yields
    ------
    Path
        The file to write. It is copied when the block ends without an error.

    Example
    -------
    >>> with writing(Path("a.wav"), ".wav") as path:
    ...     path.name
    'a.wav'
    """
    if path != PIPE:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "standard output" + suffix)
        yield copy
        with open(copy, "rb") as stream:
            shutil.copyfileobj(stream, sys.stdout.buffer)
        sys.stdout.buffer.flush()
