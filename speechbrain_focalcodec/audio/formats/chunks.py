"""Formats made of chunks: WAV, RF64, W64, CAF, AIFF and 8SVX.

A file is complete if its chunks fill it. Placeholders for unknown sizes, as
written by programs that write to a pipe, mean: up to the file's end.
"""

from typing import BinaryIO, Literal, NamedTuple

from speechbrain_focalcodec.audio.formats.patched_file import patch
from speechbrain_focalcodec.audio.formats.tags import end_of_audio, read_at
from speechbrain_focalcodec.errors import AudioError

__all__ = ["KINDS", "check_chunks"]

_MAX_ZEROS = 2**16  # bytes that may fill the file's last block

# Placeholders for unknown sizes, with a margin for additions of the program:
# SoX (AIFF), arecord and SoX (WAV), FFmpeg.
_UNKNOWN_32 = (
    range(0x7EFFFF00, 0x7F000100),
    range(0x7FFFEF00, 0x80000100),
    range(0xFFFFFF00, 0x100000000),
)
_UNKNOWN_64 = 2**63 - 2**16


class _Kind(NamedTuple):
    """Layout of the chunks of a format."""

    first: int  # position of the first chunk
    name_length: int
    size_length: int
    byteorder: Literal["little", "big"]
    alignment: int
    data: tuple[bytes, ...]  # names of the chunks that hold audio
    total_at: int = 4  # position of the file's size; 0 if there is none
    own_bytes: int = 0  # bytes of a chunk's head that its size includes


#: By a file's first four bytes.
KINDS = {
    b"RIFF": _Kind(12, 4, 4, "little", 2, (b"data",)),
    b"RIFX": _Kind(12, 4, 4, "big", 2, (b"data",)),
    b"RF64": _Kind(12, 4, 4, "little", 2, (b"data",)),
    b"FORM": _Kind(12, 4, 4, "big", 2, (b"SSND", b"BODY")),
    b"caff": _Kind(8, 4, 8, "big", 1, (b"data",), total_at=0),
    b"riff": _Kind(
        *(40, 16, 8, "little", 8),
        (b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a",),
        total_at=16,
        own_bytes=24,
    ),
}


class _Chunk(NamedTuple):
    """A chunk: its name, start of its head and of its content, length."""

    name: bytes
    start: int
    body: int
    length: int

    @property
    def stop(self) -> int:
        return self.body + self.length


def check_chunks(file: BinaryIO, size: int) -> BinaryIO:
    """Check that a file's chunks fill it.

    `file` begins with a key of `KINDS`. Returns the file, with real sizes in
    place of unknown ones. Raises AudioError if it is cut short or too long.
    """
    return _Container(file, size).check()


class _Container:
    """A file of chunks."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        magic = read_at(file, 0, 4)
        self.kind = KINDS[magic]
        ds64 = read_at(file, 12, 24) if magic == b"RF64" else b""
        #: Whether a ds64 chunk has the sizes that do not fit a WAV header.
        self.has_ds64 = ds64[:4] == b"ds64"
        self.ds64_length = int.from_bytes(ds64[16:24], "little")
        if self.has_ds64:
            self.total = int.from_bytes(ds64[8:16], "little")
        elif self.kind.total_at:
            self.total = self.number_at(self.kind.total_at)
        else:
            self.total = 0

    def check(self) -> BinaryIO:
        """Check all chunks and repair unknown sizes."""
        whole = self.total + (0 if self.kind.own_bytes else 8)
        # Writers may count a pad byte at the end that is missing.
        if whole > self.size + 1 and not self.is_unknown(self.total):
            raise self.cut_short(whole)
        position = self.kind.first
        while chunk := self.chunk(position):
            if chunk.name in self.kind.data and (
                self.is_unknown(chunk.length)
                and chunk.stop > self.size
                or self.is_zero_for_unknown(chunk)
            ):
                return self.with_sizes(chunk)
            if chunk.stop > self.size:
                raise self.cut_short(chunk.stop)
            position = self.after(chunk)
        if not self.is_end(position):
            raise AudioError(
                f"goes on for {self.size - position} bytes after what its "
                "header counts"
            )
        return self.file

    def number_at(self, position: int) -> int:
        data = read_at(self.file, position, self.kind.size_length)
        return int.from_bytes(data, self.kind.byteorder)

    def chunk(self, start: int) -> _Chunk | None:
        """The chunk that begins here, or None."""
        kind = self.kind
        name = read_at(self.file, start, kind.name_length)
        body = start + kind.name_length + kind.size_length
        is_name = all(0x20 <= byte < 0x7F for byte in name[:4])
        # A second file is not a chunk of the first.
        if body > self.size or not is_name or name[:4] in KINDS:
            return None
        length = self.number_at(start + kind.name_length) - kind.own_bytes
        if self.has_ds64 and name in kind.data and length == 2**32 - 1:
            length = self.ds64_length
        return _Chunk(name, start, body, max(0, length))

    def after(self, chunk: _Chunk) -> int:
        """Start of the next chunk."""
        padded = chunk.stop + -chunk.length % self.kind.alignment
        # Some writers forget the padding.
        if padded < self.size and not self.chunk(padded):
            return chunk.stop if self.chunk(chunk.stop) else padded
        return padded

    def is_filled_from(self, position: int) -> bool:
        """Whether only complete chunks follow."""
        while chunk := self.chunk(position):
            if chunk.stop > self.size:
                return False
            position = self.after(chunk)
        return self.is_end(position)

    def is_end(self, position: int) -> bool:
        """Whether only tags follow, or zeros that fill a block."""
        left = self.size - position
        if left <= 0 or end_of_audio(self.file, self.size) <= position:
            return True
        return left <= _MAX_ZEROS and not any(
            read_at(self.file, position, left)
        )

    def is_unknown(self, length: int) -> bool:
        """Whether a length is a placeholder for an unknown one."""
        if self.kind.size_length == 8 or self.has_ds64:
            return length == 0 or length >= _UNKNOWN_64
        return length == 0 or any(length in span for span in _UNKNOWN_32)

    def is_zero_for_unknown(self, chunk: _Chunk) -> bool:
        """Whether a chunk of length 0 contains the rest of the file."""
        if chunk.length > 0 or chunk.body >= self.size:
            return False
        return not self.chunk(chunk.body) or not self.is_filled_from(chunk.body)

    def with_sizes(self, chunk: _Chunk) -> BinaryIO:
        """The file, with sizes for audio from this chunk to the end."""
        kind = self.kind
        end = end_of_audio(self.file, self.size)
        length = end - chunk.body
        patches = {}
        if self.has_ds64:
            patches[20] = (end - 8).to_bytes(8, "little")
            patches[28] = length.to_bytes(8, "little")
        else:
            most = 256**kind.size_length - 1
            if kind.total_at:
                total = end - (0 if kind.own_bytes else 8)
                patches[kind.total_at] = self.to_bytes(min(total, most))
            length = min(length + kind.own_bytes, most)
            patches[chunk.start + kind.name_length] = self.to_bytes(length)
        return patch(self.file, end, patches)

    def to_bytes(self, number: int) -> bytes:
        return number.to_bytes(self.kind.size_length, self.kind.byteorder)

    def cut_short(self, whole: int) -> AudioError:
        return AudioError(
            f"is cut short (should have {whole} bytes, has {self.size})"
        )
