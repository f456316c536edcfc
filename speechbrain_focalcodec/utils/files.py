"""Atomic writes, bounded reads and hashes of files."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "atomic_path",
    "atomic_write_text",
    "open_file",
    "read_file",
    "sha256_of",
]

_BLOCK = 2**20  # bytes per read
_MAX_NAME = 255  # bytes


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Context with a temporary file that replaces `path` on success.

    The temporary file exists, is empty and has the suffix of `path`, unless
    that is very long (libraries choose formats by it). It is flushed to disk
    and moved to `path` when the block ends; if the block raises, it is removed
    and `path` stays as it was.

    Arguments
    ---------
    path : str or Path
        The file to write. Its folder is created if missing.

    Yields
    ------
    Path
        The temporary file.

    Raises
    ------
    OSError
        If the file cannot be written, or its name is too long.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> with atomic_path(folder / "notes.txt") as temporary:
    ...     _ = temporary.write_text("whole or not at all")
    >>> [item.name for item in folder.iterdir()]
    ['notes.txt']
    """
    path = Path(path)
    if len(os.fsencode(path.name)) > _MAX_NAME:
        number = errno.ENAMETOOLONG
        raise OSError(number, os.strerror(number), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Only a part of the name, so that the temporary one is not too long.
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem[:20]}.",
        suffix=path.suffix if len(path.suffix) < 20 else "",
        dir=path.parent,
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes private files; set the permissions of open().
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            # The system's message may name no file.
            reason = "the disk is full; free some space and try again"
            raise OSError(errno.ENOSPC, reason, str(path)) from error
        raise


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises OSError for others: a FIFO or a device could block or have no end.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a regular file")
    return open(path, "rb")


def read_file(path: str | Path, most: int) -> bytes:
    """Read a regular file; OSError if it has more than `most` bytes."""
    with open_file(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(f"larger than any such file is ({most} bytes)")
    return content


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_file(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
