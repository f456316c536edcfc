"""MP3 files: counts their frames.

libsndfile takes the number of frames from a Xing or Info header. Without one it
estimates it from the first frame's bitrate, and stops reading there.
"""

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from speechbrain_focalcodec.audio.formats.patched_file import PatchedFile
from speechbrain_focalcodec.audio.formats.tags import (
    end_of_audio,
    read_at,
    tag_length,
)
from speechbrain_focalcodec.errors import AudioError

__all__ = ["check_mpeg", "is_mpeg"]

# kbit/s by MPEG version (2 also for 2.5) and layer, then by index. Index 0 is
# the free format: any bitrate, the same in all frames.
_BITRATES: dict[tuple[int, int], tuple[int, ...]] = {
    (1, 1): (0, *range(32, 449, 32)),
    (1, 2): (0, 32, 48, *range(56, 81, 8), *range(96, 129, 16))
    + (160, 192, 224, 256, 320, 384),
    (1, 3): (0, *range(32, 65, 8), *range(80, 129, 16))
    + (160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, *range(56, 81, 8), *range(96, 193, 16), 224, 256),
    (2, 2): (0, *range(8, 65, 8), *range(80, 161, 16)),
}
_BITRATES[2, 3] = _BITRATES[2, 2]
_RATES = (44100, 48000, 32000)  # Hz, of MPEG-1

_HEAD = 64  # bytes of a frame that hold its header and that of an encoder
_SEARCHED = 2**16  # bytes in which the first frame is looked for
_MAX_FREE = 2**13  # bytes of a frame of free format
_MAX_ZEROS = 2**16  # bytes that may follow the frames


class _Header(NamedTuple):
    """Content of the first four bytes of a frame."""

    kind: tuple[int, int, int, bool]  # version, layer, rate (Hz), mono
    length: int  # bytes; 0 in a free format
    padding: int  # bytes of these that only some frames have
    num_samples: int
    side: int  # bytes between this header and that of an encoder


class _Frame(NamedTuple):
    """A complete frame. The frame of the encoder's header has no audio."""

    start: int
    stop: int
    counted: int | None  # frames, by the encoder; 0 if it does not say
    is_vbri: bool


def is_mpeg(data: bytes) -> bool:
    """Whether bytes (at least four) begin with a frame's header."""
    return _parse(data[:4]) is not None


def check_mpeg(
    file: BinaryIO, start: int, size: int
) -> tuple[BinaryIO, int | None]:
    """Count the frames of an MP3 file, from `start` on.

    Raises AudioError if it is cut short or damaged.

    Returns
    -------
    file : BinaryIO
        Only the frames, so that libsndfile reads all of them.
    num_samples : int or None
        Samples per channel; None if libsndfile knows the number from the
        encoder's header.
    """
    walk = _Walk(file, start, end_of_audio(file, size))
    headers: list[_Frame] = []
    parts: list[range] = []
    num_frames = first_length = 0
    for frame in walk:
        if frame.counted is not None:
            headers.append(frame)
            continue
        num_frames += 1
        start = frame.start
        first_length = first_length or frame.stop - start
        if parts and parts[-1].stop == start:
            start = parts.pop().start
        parts.append(range(start, frame.stop))
    counted = sum(frame.counted or 0 for frame in headers)
    # A VBRI header may count itself.
    missing = counted - num_frames - sum(frame.is_vbri for frame in headers)
    if missing > 0:
        raise AudioError(
            f"is cut short (should have {counted} frames, has {num_frames})"
        )
    if counted != num_frames:
        walk.check_rest()
    if num_frames == 0:
        raise AudioError("holds no audio")
    if len(headers) == 1 and counted == num_frames and not headers[0].is_vbri:
        header = range(headers[0].start, headers[0].stop)
        return io.BufferedReader(PatchedFile(file, [header, *parts])), None
    # libsndfile's estimate must not be too short.
    size = (num_frames + 2) * (first_length + 4) + 2**10
    source = PatchedFile(file, parts, size)
    return io.BufferedReader(source), num_frames * walk.header.num_samples


class _Walk:
    """Iterates over the frames of a file between `start` and `end`."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self.file, self.end = file, end
        while tag := tag_length(read_at(file, start, _HEAD)):
            start += tag
        self.free_length = 0
        data = read_at(file, start, _SEARCHED)
        at = -1
        while (at := data.find(b"\xff", at + 1)) >= 0:
            header = _parse(data[at : at + 4])
            if header is not None:
                self.header = header
                self.position = start + at
                for length in self._free_lengths():
                    self.free_length = length
                    if self._goes_on(self.position):
                        return
        raise AudioError("holds no MPEG audio")

    def __iter__(self) -> Iterator[_Frame]:
        """Yield complete frames until other data follows."""
        while self.position < self.end:
            head = read_at(self.file, self.position, _HEAD)
            length = self._length(head)
            if length == 0:
                length = tag_length(head)
                if length == 0:
                    return
            elif self.position + length > self.end:
                return
            else:
                count, is_vbri = _count(head, self.header)
                stop = self.position + length
                yield _Frame(self.position, stop, count, is_vbri)
            self.position += length

    def check_rest(self) -> None:
        """Raise if data other than zeros follows the frames."""
        left = self.end - self.position
        if left <= 0:
            return
        rest = read_at(self.file, self.position, min(left, _MAX_ZEROS))
        if left < 4 and rest[0] == 0xFF or self._length(rest):
            raise AudioError("is cut short (its last frame is not whole)")
        if any(rest) or left > _MAX_ZEROS:
            raise AudioError(
                f"is damaged at byte {self.position} (no MPEG frame)"
            )

    def _length(self, head: bytes) -> int:
        """Length of the frame that begins here, or 0."""
        header = _parse(head[:4])
        if header is None or header.kind != self.header.kind:
            return 0
        if header.length or not self.free_length:
            return header.length
        return self.free_length + header.padding

    def _goes_on(self, position: int, num_frames: int = 3) -> bool:
        """Whether a few frames follow one another here, or the file ends."""
        for _ in range(num_frames):
            head = read_at(self.file, position, _HEAD)
            if position >= self.end or not any(head) or tag_length(head):
                return True
            length = self._length(head)
            if length == 0:
                return False
            position += length
        return True

    def _free_lengths(self) -> Iterator[int]:
        """Candidate frame lengths of a free format, without padding."""
        if self.header.length:
            yield 0
            return
        data = read_at(self.file, self.position, _MAX_FREE)
        at = 3
        while (at := data.find(data[:2], at + 1)) >= 0:
            header = _parse(data[at : at + 4])
            if header and header.kind == self.header.kind:
                yield at - self.header.padding


@lru_cache(maxsize=4096)
def _parse(head: bytes) -> _Header | None:
    """Parse a frame's header; None if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version_code, layer_code = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate_code, rate_code = head[2] >> 4, head[2] >> 2 & 3
    if version_code == 1 or layer_code == 0:
        return None
    if bitrate_code == 15 or rate_code == 3:
        return None
    layer = 4 - layer_code
    version = 1 if version_code == 3 else 2
    rate = _RATES[rate_code] // {3: 1, 2: 2, 0: 4}[version_code]
    bitrate = 1000 * _BITRATES[version, layer][bitrate_code]
    num_samples = 384 if layer == 1 else 1152
    if layer == 3 and version == 2:
        num_samples = 576
    slot = 4 if layer == 1 else 1  # bytes
    padding = slot * (head[2] >> 1 & 1)
    length = num_samples // 8 // slot * bitrate // rate * slot
    is_mono = head[3] >> 6 == 3
    side = (17, 32) if version == 1 else (9, 17)
    return _Header(
        (version_code, layer, rate, is_mono),
        length + padding if length else 0,
        padding,
        num_samples,
        side[0] if is_mono else side[1],
    )


def _count(head: bytes, header: _Header) -> tuple[int | None, bool]:
    """Frame count of an encoder's header, and whether it is a VBRI header.

    The count is None if there is no such header, 0 if it has no count.
    """
    if header.kind[1] != 3:
        return None, False
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big"), True
    for at in (4 + header.side, 6 + header.side):  # with a checksum before
        if head[at : at + 4] in (b"Xing", b"Info"):
            has_count = head[at + 7] & 1
            count = int.from_bytes(head[at + 8 : at + 12], "big")
            return (count if has_count else 0), False
    return None, False
