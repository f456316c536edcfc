"""Locks a dataset's folder, so that one run at a time writes it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from speechbrain_focalcodec.corpus.layout import WORK_NAME
from speechbrain_focalcodec.errors import DataError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["run_lock"]

LOCK_NAME = f"{WORK_NAME}/lock"


@contextmanager
def run_lock(out: str | Path, wait: bool = False) -> Iterator[None]:
    """Refuse a second run in the same folder.

    Rank 0 holds the lock during its run, and another rank while it writes the
    index. The system releases the lock when the process ends. There is none
    where the file system or the system has no locks.

    Arguments
    ---------
    out : str or Path
        The dataset's folder. It is created if missing, and removed again if
        it is empty at the end.
    wait : bool
        Whether to wait until another run has ended.

    Raises
    ------
    DataError
        If another run holds the lock.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "tokens"
    >>> with run_lock(folder), run_lock(folder):
    ...     pass
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.DataError: ...tokens: another run is at ...
    >>> folder.exists()
    False
    """
    out = Path(out)
    was_there = out.exists()
    path = out / LOCK_NAME
    if was_there and not out.is_dir():
        raise DataError(f"{out}: is a file; give the name of a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = _locked(path, wait)
    except BlockingIOError as error:
        holder = path.read_text(encoding="utf-8", errors="replace")[:200]
        raise DataError(
            f"{out}: another run is at work here ({holder}); wait until it "
            "has ended, or give another output folder"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        with suppress(OSError):  # not empty
            path.parent.rmdir()
            if not was_there:
                out.rmdir()


def _locked(path: Path, wait: bool) -> int:
    """Open and lock a file; a BlockingIOError if another process has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, wait)
            # A run that has just ended may have removed the file.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(handle)):
                    me = f"process {os.getpid()} on {socket.gethostname()}"
                    os.ftruncate(handle, 0)
                    os.write(handle, me.encode())
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks
