"""Tags around audio: ID3v1, ID3v2, APE and Lyrics3, found by their sizes."""

from typing import BinaryIO

__all__ = ["end_of_audio", "read_at", "tag_length"]

_ID3V1 = 128
_APE = 32  # of its header, and of its footer
_LYRICS1 = 5100  # at most


def read_at(file: BinaryIO, position: int, length: int) -> bytes:
    """Read bytes at a position.

    Arguments
    ---------
    file : BinaryIO
        The file.
    position : int
        Where; nothing is read at a negative one.
    length : int
        How many; fewer at the end.

    Returns
    -------
    bytes
        What is there.

    Example
    -------
    >>> import io
    >>> read_at(io.BytesIO(b"abcdef"), 2, 3)
    b'cde'
    """
    if position < 0:
        return b""
    file.seek(position)
    return file.read(length)


def tag_length(data: bytes) -> int:
    """Give the length of the tag that begins here.

    Arguments
    ---------
    data : bytes
        Ten bytes of an ID3v2 tag, or 32 of an APE tag; more do no harm.

    Returns
    -------
    int
        In bytes; 0 where there is none (an APE tag needs a header).

    Example
    -------
    >>> tag_length(b"ID3" + bytes([4, 0, 0, 0, 0, 1, 0]))
    138
    """
    if data[:3] == b"ID3" and len(data) >= 10 and max(data[6:10]) < 128:
        has_footer = data[3] >= 4 and data[5] & 0x10
        return (20 if has_footer else 10) + _syncsafe(data[6:10])
    # What begins an APE tag is its header, not the footer of one.
    if data[:8] == b"APETAGEX" and len(data) >= _APE and data[23] & 0x20:
        return _APE + int.from_bytes(data[12:16], "little")
    return _ID3V1 if data[:3] == b"TAG" else 0


def end_of_audio(file: BinaryIO, size: int) -> int:
    """Find where the tags at the end of a file begin.

    Arguments
    ---------
    file : BinaryIO
        The file.
    size : int
        Where it ends.

    Returns
    -------
    int
        The position of the first of them; `size` where there is none.

    Example
    -------
    >>> import io
    >>> end_of_audio(io.BytesIO(bytes(50) + b"TAG" + bytes(125)), 178)
    50
    """
    end = size
    while length := _last_tag(file, end):
        end -= length
    return end


def _last_tag(file: BinaryIO, end: int) -> int:
    """The length of the tag that ends here, 0 where there is none."""
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
    """Seven bits of each byte."""
    value = 0
    for byte in data:
        value = value << 7 | byte
    return value
