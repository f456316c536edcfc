"""Finds tags around audio by their sizes: ID3v1, ID3v2, APE and Lyrics3."""

from typing import BinaryIO

__all__ = ["end_of_audio", "read_at", "tag_length"]

_ID3V1 = 128
_APE = 32  # header, and footer
_LYRICS1 = 5100  # at most


def read_at(file: BinaryIO, position: int, length: int) -> bytes:
    """Bytes at a position; fewer at the end, none at a negative position."""
    if position < 0:
        return b""
    file.seek(position)
    return file.read(length)


def tag_length(data: bytes) -> int:
    """Length of the tag that begins here; 0 if there is none.

    `data` has at least ten bytes of an ID3v2 tag, or 32 of an APE tag, which
    needs a header.
    """
    if data[:3] == b"ID3" and len(data) >= 10 and max(data[6:10]) < 128:
        has_footer = data[3] >= 4 and data[5] & 0x10
        return (20 if has_footer else 10) + _syncsafe(data[6:10])
    # An APE tag begins with a header, not with a footer.
    if data[:8] == b"APETAGEX" and len(data) >= _APE and data[23] & 0x20:
        return _APE + int.from_bytes(data[12:16], "little")
    return _ID3V1 if data[:3] == b"TAG" else 0


def end_of_audio(file: BinaryIO, size: int) -> int:
    """Position of the first tag at the end of a file; `size` without tags."""
    end = size
    while length := _last_tag(file, end):
        end -= length
    return end


def _last_tag(file: BinaryIO, end: int) -> int:
    """Length of the tag that ends here; 0 if there is none."""
    if read_at(file, end - _ID3V1, 3) == b"TAG":
        return _ID3V1
    if read_at(file, end - 227, 4) == b"TAG+":
        return 227
    length = 0
    foot = read_at(file, end - _APE, _APE)
    if foot[:8] == b"APETAGEX":
        has_header = foot[23] & 0x80
        length = int.from_bytes(foot[12:16], "little")
        length += _APE if has_header else 0
    foot = read_at(file, end - 15, 15)
    if foot[6:] == b"LYRICS200" and foot[:6].isdigit():
        length = int(foot[:6]) + 15
    elif foot[6:] == b"LYRICSEND":
        start = max(0, end - _LYRICS1 - 20)
        found = read_at(file, start, end - start).rfind(b"LYRICSBEGIN")
        length = end - start - found if found >= 0 else 0
    foot = read_at(file, end - 10, 10)
    if foot[:3] == b"3DI" and max(foot[6:]) < 128:
        length = _syncsafe(foot[6:]) + 20
    return length if length <= end else 0


def _syncsafe(data: bytes) -> int:
    """A number with seven bits in each byte."""
    value = 0
    for byte in data:
        value = value << 7 | byte
    return value
