"""Ogg files: Vorbis, Opus, FLAC in pages."""

from typing import BinaryIO

from speechbrain_focalcodec.audio.formats.tags import end_of_audio, read_at
from speechbrain_focalcodec.errors import AudioError

__all__ = ["check_ogg"]

_HEAD = 27  # bytes of a page, before its table of lengths
# Flags of the first and last page of a stream.
_IS_FIRST, _IS_LAST = 2, 4


def check_ogg(file: BinaryIO, size: int) -> str | None:
    """Check that an Ogg file consists of complete pages of one stream.

    Returns a warning if no page is marked as the last: programs that write to a
    pipe omit that, but the file may be cut between two pages. Raises AudioError
    if a page is damaged or cut short, or another stream follows.
    """
    position = 0
    has_begun = is_open = is_last = False
    while position < size:
        page = read_at(file, position, _HEAD + 255)
        if page[:4] != b"OggS":
            if end_of_audio(file, size) <= position:
                break
            raise AudioError(f"is damaged at byte {position} (no Ogg page)")
        flags = page[5] if len(page) > 5 else 0
        is_last = bool(flags & _IS_LAST)
        if flags & _IS_FIRST and has_begun:
            raise AudioError(f"holds another stream from byte {position} on")
        has_begun = has_begun or not flags & _IS_FIRST
        lengths = page[_HEAD : _HEAD + page[26]] if len(page) >= _HEAD else b""
        position += _HEAD + len(lengths) + sum(lengths)
        if len(page) < _HEAD or len(lengths) < page[26] or position > size:
            raise AudioError("is cut short (its last page is not whole)")
        # The last packet continues on the next page.
        is_open = lengths[-1:] == b"\xff"
    if is_open:
        raise AudioError("is cut short (a page is missing at its end)")
    if is_last:
        return None
    return (
        "its last page does not say that it is the last; compare its length, "
        "it may be cut short"
    )
