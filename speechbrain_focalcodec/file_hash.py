"""Reading files that came from elsewhere: in bounds, and their SHA-256."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_file", "read_file", "sha256_of"]

_BLOCK = 2**20  # bytes hashed at once


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file. A FIFO or a device could block or have no end.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    file object
        To read bytes from.

    Raises
    ------
    OSError
        If it is missing, or no regular file.

    Example
    -------
    >>> open_file(os.devnull)
    Traceback (most recent call last):
    ...
    OSError: not a regular file
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a regular file")
    return open(path, "rb")


def read_file(path: str | Path, most: int) -> bytes:
    """Read a whole file, unless it is too large.

    Arguments
    ---------
    path : str or Path
        The file.
    most : int
        Bytes that it may have.

    Returns
    -------
    bytes
        Its content.

    Raises
    ------
    OSError
        If it is missing, too large or no regular file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a"
    >>> _ = path.write_bytes(b"abc")
    >>> read_file(path, 3)
    b'abc'
    >>> read_file(path, 2)
    Traceback (most recent call last):
    ...
    OSError: larger than any such file is (2 bytes)
    """
    with open_file(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(f"larger than any such file is ({most} bytes)")
    return content


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    str
        64 digits.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a"
    >>> _ = path.write_bytes(b"")
    >>> sha256_of(path)[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    with open_file(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
