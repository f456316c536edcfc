"""FLAC files: counts their samples by the last frame."""

from typing import BinaryIO, NamedTuple

from speechbrain_focalcodec.audio.formats.patched_file import patch
from speechbrain_focalcodec.audio.formats.tags import end_of_audio, read_at
from speechbrain_focalcodec.errors import AudioError

__all__ = ["check_flac"]

_MAX_TOTAL = 2**36 - 1
_MAX_TRIES = 8  # a checksum of a frame takes a millisecond or more


class _StreamInfo(NamedTuple):
    """Fields of the header."""

    max_block: int  # samples of a frame
    max_frame: int  # bytes
    total: int  # samples of a channel; 0 if not known


def check_flac(file: BinaryIO, start: int, size: int) -> BinaryIO:
    """Check that a FLAC file ends with the last sample of its header.

    ``fLaC`` is at `start`, possibly after tags. Returns the file, with its
    number of samples if the header lacks it. Raises AudioError if it is cut
    short, damaged, or too long.
    """
    header = read_at(file, start + 8, 34)
    first = _first_frame(file, start + 4, size)
    info = _read_info(header)
    end = end_of_audio(file, size)
    begin = max(first, end - info.max_frame)
    total = _find_total(read_at(file, begin, max(0, end - begin)), info)
    if total is None:
        raise AudioError("is cut short (its last frame is not whole)")
    if info.total == 0:
        known = int.from_bytes(header[13:18], "big") | min(total, _MAX_TOTAL)
        return patch(file, size, {start + 21: known.to_bytes(5, "big")})
    if total < info.total:
        raise AudioError(
            f"is cut short (should have {info.total} samples, has {total})"
        )
    if total > info.total:
        raise AudioError(
            f"holds {total} samples, but its header counts {info.total}"
        )
    return file


def _first_frame(file: BinaryIO, position: int, size: int) -> int:
    """Position of the first frame, after the metadata blocks."""
    is_last = False
    while not is_last:
        head = read_at(file, position, 4)
        position += 4 + int.from_bytes(head[1:4], "big")
        if len(head) < 4 or position > size:
            raise AudioError("is cut short within its metadata")
        is_last = bool(head[0] & 0x80)
    return position


def _read_info(header: bytes) -> _StreamInfo:
    max_block = int.from_bytes(header[2:4], "big")
    max_frame = int.from_bytes(header[7:10], "big")
    fields = int.from_bytes(header[10:18], "big")
    channels, bits = (fields >> 41 & 7) + 1, (fields >> 36 & 31) + 1
    # A frame that is not compressed, and its header and checksum.
    verbatim = max_block * channels * (bits + 1) // 8 + 64
    max_frame = min(max_frame or verbatim, verbatim)
    return _StreamInfo(max_block, max_frame, fields & _MAX_TOTAL)


def _find_total(tail: bytes, info: _StreamInfo) -> int | None:
    """Number of samples up to the end of the last frame."""
    position = len(tail)
    tries = 0
    while (position := tail.rfind(b"\xff", 0, position)) >= 0:
        total = _frame_stop(tail[position : position + 16], info)
        if total is None:
            continue
        # A false header has another count and a wrong checksum. (The decoder
        # checks whether the right frame is complete.)
        if total == info.total or not _crc16(tail[position:]):
            return total
        tries += 1
        if tries == _MAX_TRIES:
            break
    return None


def _frame_stop(head: bytes, info: _StreamInfo) -> int | None:
    """Sample after those of a frame; None if this is no frame's header."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    number, position = _read_number(head, 4)
    if position == 0 or size_code == 0 or rate_code == 15:
        return None
    if size_code in (6, 7):
        length = size_code - 5
        block = int.from_bytes(head[position : position + length], "big") + 1
        position += length
    elif size_code == 1:
        block = 192
    else:
        block = 576 << size_code - 2 if size_code < 6 else 1 << size_code
    position += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if len(head) <= position or _crc8(head[: position + 1]):
        return None
    has_samples = head[1] & 1
    return (number if has_samples else number * info.max_block) + block


def _read_number(head: bytes, position: int) -> tuple[int, int]:
    """A number in UTF-8 coding and its end; 0 if there is none."""
    first = head[position]
    length = 8 - (first ^ 0xFF).bit_length()
    if length == 0:
        return first, position + 1
    rest = head[position + 1 : position + length]
    if length in (1, 8) or any(byte >> 6 != 2 for byte in rest):
        return 0, 0
    number = first & (0x7F >> length)
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, position + length


def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value <<= 1
            if value >> bits:
                value ^= polynomial | 1 << bits
        table.append(value)
    return tuple(table)


_CRC8 = _crc_table(8, 0x07)
_CRC16 = _crc_table(16, 0x8005)


def _crc8(data: bytes) -> int:
    """Zero for data that ends with its own checksum."""
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    """Zero for data that ends with its own checksum; zeros may follow."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value
