"""Formats with a header and samples: AU and NIST SPHERE."""

import re
from typing import BinaryIO, Literal

from speechbrain_focalcodec.audio.formats.patched_file import patch
from speechbrain_focalcodec.audio.formats.tags import read_at
from speechbrain_focalcodec.errors import AudioError

__all__ = ["check_au", "check_nist"]

_UNKNOWN = 0x7FFFF000  # the smallest placeholder for an unknown size
_PADDING = 1  # byte that may follow an odd number of bytes
_NIST_FIELD = re.compile(rb"^(\w+) -\w+ +(\S+)", re.MULTILINE)


def check_au(file: BinaryIO, size: int) -> BinaryIO:
    """Check that an AU file has the size of its header.

    Returns the file, with its real size in place of an unknown one. Raises
    AudioError if it is cut short or too long.
    """
    header = read_at(file, 0, 12)
    order: Literal["big", "little"] = "big"
    if header[:1] != b".":
        order = "little"
    start, length = (
        int.from_bytes(header[at : at + 4], order) for at in (4, 8)
    )
    if length in (0, 2**32 - 1) or (length >= _UNKNOWN and length > size):
        length = max(0, min(size - start, 2**32 - 2))
        return patch(file, size, {8: length.to_bytes(4, order)})
    _check_length(start + length, size)
    return file


def check_nist(file: BinaryIO, size: int) -> BinaryIO:
    """Check that a NIST SPHERE file has the samples of its header.

    Raises AudioError if it is cut short or too long.
    """
    header = read_at(file, 0, 16).split()
    if len(header) < 2 or not header[1].isdigit():
        return file  # libsndfile raises the error
    start = int(header[1])
    text = read_at(file, 0, min(start, size)).partition(b"end_head")[0]
    fields = dict(_NIST_FIELD.findall(text))
    try:
        length = int(fields[b"sample_count"])
        length *= int(fields.get(b"channel_count", b"1"))
        length *= int(fields.get(b"sample_n_bytes", b"1"))
    except (KeyError, ValueError):
        return file
    if length > 0:
        _check_length(start + length, size)
    return file


def _check_length(whole: int, size: int) -> None:
    if whole > size:
        raise AudioError(
            f"is cut short (should have {whole} bytes, has {size})"
        )
    if whole + _PADDING < size:
        raise AudioError(
            f"goes on for {size - whole} bytes after what its header counts"
        )
