"""Reads standard input and writes standard output as files named ``-``."""

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
    """Yield a file to read: `path`, or a copy of standard input if it is ``-``.

    Errors of the block name standard input, not the copy.
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
    """Yield a file to write: `path`, or one for standard output if it is ``-``.

    `suffix` is its format. It is copied if the block ends without an error.
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
