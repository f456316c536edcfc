"""The SHA-256 of a file."""

import hashlib
from pathlib import Path

__all__ = ["sha256_of"]

_BLOCK = 2**20  # bytes hashed at once


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
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
