"""Views of files with replaced bytes, for libsndfile."""

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO

__all__ = ["PatchedFile", "patch"]

_TAIL = 128  # bytes that libsndfile reads at the end of an MP3 file


class PatchedFile(io.RawIOBase):
    """Parts of a file and other bytes, read as one file.

    Arguments
    ---------
    file : BinaryIO
        The file; it must stay open.
    parts : sequence of range or bytes
        Positions of bytes in `file`, or bytes.
    size : int, optional
        Claimed size, if larger than the parts. Nothing can be read in between;
        the last 128 bytes are zeros.

    Example
    -------
    >>> file = PatchedFile(io.BytesIO(b"abcdef"), [b"AB", range(3, 6)])
    >>> file.read(), file.seek(-2, io.SEEK_END), file.read()
    (b'ABdef', 3, b'ef')
    """

    def __init__(
        self, file: BinaryIO, parts: Sequence[range | bytes], size: int = 0
    ) -> None:
        super().__init__()
        self._file = file
        self._parts = parts
        self._stops = list(accumulate(map(len, parts)))
        self._size = max(size, self._stops[-1])
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = max(0, starts.get(whence, 0) + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the next bytes, up to the end of a part."""
        index = bisect_right(self._stops, self._position)
        if index < len(self._parts):
            part = self._parts[index]
            start = self._position - (self._stops[index] - len(part))
            data = part[start : start + len(buffer)]
            if isinstance(data, range):
                self._file.seek(data.start)
                data = self._file.read(len(data))
        else:
            left = self._size - self._position
            data = bytes(min(left, len(buffer))) if left <= _TAIL else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def patch(file: BinaryIO, size: int, patches: dict[int, bytes]) -> BinaryIO:
    """The first `size` bytes of a file, with sorted `patches` by position."""
    parts: list[range | bytes] = []
    position = 0
    for start, data in patches.items():
        parts += [range(position, start), data]
        position = start + len(data)
    return io.BufferedReader(PatchedFile(file, [*parts, range(position, size)]))
