"""Writing files so that a reader never sees half of one."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "atomic_write_text"]

_MAX_NAME = 255  # bytes


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` that replaces it on success.

    The temporary file has the suffix of `path`, unless that is very long
    (libraries choose formats by it). It is flushed to disk and moved over
    `path` when the block ends; when the block raises, it is removed and
    `path` is left as it was.

    Arguments
    ---------
    path : str or Path
        The file to write. Its folder is made when it is missing.

    Yields
    ------
    Path
        The temporary file to write to; it exists and is empty.

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
    # A part of the name, so that the temporary one is not too long.
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
        # mkstemp makes private files; give what a plain open() would.
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
    """Write `text` to `path` as UTF-8, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file to write.
    text : str
        Its new content.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.txt"
    >>> atomic_write_text(path, "text")
    >>> path.read_text(encoding="utf-8")
    'text'
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
