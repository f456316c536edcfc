"""The file of a prepared voice reference: safetensors with a closed content.

One float32 tensor, ``frames`` [M, C], and metadata, all strings: ``format``,
``version``, ``model``, ``fingerprint``, ``frame_rate`` and ``name``. Any
safetensors library reads it. Frames are written and read in pieces: an hour of
speech is 0.74 GB at full size.
"""

import json
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from speechbrain_focalcodec.errors import VoiceError
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = [
    "Facts",
    "MAX_FRAMES",
    "SUFFIX",
    "StoredFrames",
    "check_name",
    "read_voice",
    "write_voice",
]

SUFFIX = ".safetensors"
MAX_FRAMES = 2**24  # more than 90 hours at 50 Hz
MAX_DIM = 2**16

_FORMAT = "focalcodec-voice"
_VERSION = "1"
_KEYS = {"format", "version", "model", "fingerprint", "frame_rate", "name"}


class StoredFrames:
    """Frames on disk, read in pieces; threads may share them.

    Arguments
    ---------
    read : callable
        ``read(start, stop)`` returns frames, float32 [stop - start, C].
    shape : (int, int)
        Number of frames M and their dimension C.
    close : callable
        Called when this object is deleted.
    """

    def __init__(
        self,
        read: Callable[[int, int], torch.Tensor],
        shape: tuple[int, int],
        close: Callable[[], object],
    ) -> None:
        self.shape = shape
        self._read = read
        self._lock = threading.Lock()
        weakref.finalize(self, close)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Frames, float32 [stop - start, C]; at least one."""
        with self._lock:
            return self._read(start, stop)


@dataclass(frozen=True)
class Facts:
    """Metadata of a reference.

    Arguments
    ---------
    fingerprint : str
        SHA-256 (hex) of the model that made the frames.
    model : str
        Name of that model.
    frame_rate : float
        Frames per second (Hz).
    name : str
        Name of the speaker; may be empty.

    Raises
    ------
    VoiceError
        If a value is out of range.
    """

    fingerprint: str
    model: str
    frame_rate: float
    name: str = ""

    def __post_init__(self) -> None:
        in_range = {
            "fingerprint": re.fullmatch("[0-9a-f]{64}", self.fingerprint),
            "model": 0 < len(self.model) <= 200 and self.model.isprintable(),
            "frame_rate": 0.1 <= self.frame_rate <= 10000,
            "name": len(self.name) <= 200 and self.name.isprintable(),
        }
        for key, valid in in_range.items():
            if not valid:
                raise VoiceError(f"{key} is out of range; prepare it again")


def check_name(path: Path) -> None:
    """Raise VoiceError unless the suffix is that of a reference."""
    if path.suffix.lower() != SUFFIX:
        raise VoiceError(f"{path}: a reference's name must end in {SUFFIX}")


def write_voice(
    path: str | Path,
    parts: Iterable[torch.Tensor],
    shape: tuple[int, int],
    facts: Facts,
) -> None:
    """Write a reference, atomically.

    `parts` are all frames in order, float32 [T, C] each, on the CPU; `shape` is
    their total, [M, C]. Raises VoiceError if the suffix is another.
    """
    path = Path(path)
    check_name(path)
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": facts.model,
        "fingerprint": facts.fingerprint,
        "frame_rate": repr(float(facts.frame_rate)),
        "name": facts.name,
    }
    entry = {
        "dtype": "F32",
        "shape": list(shape),
        "data_offsets": [0, 4 * math.prod(shape)],
    }
    # The library's own writer needs all frames in memory, as bytes.
    header = json.dumps({"__metadata__": metadata, "frames": entry}).encode()
    header += b" " * (-len(header) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for part in parts:
            stream.write(part.contiguous().numpy().data)


def read_voice(path: str | Path) -> tuple[StoredFrames, Facts]:
    """Open a reference; nothing in it is executed, no size is trusted.

    The frames are read from the open file when needed: it may be replaced
    meanwhile, but not changed. Raises VoiceError if the file is missing,
    damaged, or of another kind or version. Values of frames are not checked.
    """
    path = Path(path)
    if not path.is_file():
        raise VoiceError(f"{path}: no such file; check the path")
    try:
        shape, metadata = _read_header(path)
        return _open_frames(path, shape), _to_facts(metadata)
    except (
        *(SafetensorError, OSError, LookupError),
        # VoiceError is a ValueError.
        *(ValueError, TypeError, RuntimeError, OverflowError),
    ) as error:
        raise VoiceError(
            f"{path}: no voice reference, or a damaged one ({error}); prepare "
            "it again"
        ) from error


def _read_header(path: Path) -> tuple[tuple[int, int], dict[str, str]]:
    """Shape and metadata of a valid reference."""
    with safe_open(path, "pt") as stream:
        names, metadata = list(stream.keys()), stream.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        if metadata.get("version") != _VERSION:
            raise ValueError(
                f"version {metadata.get('version')!r}, this is for {_VERSION}"
            )
        if metadata.keys() != _KEYS or names != ["frames"]:
            raise ValueError("other keys than expected")
        frames = stream.get_slice("frames")
        if frames.get_dtype() != "F32":
            raise ValueError(f"frames are {frames.get_dtype()}, not F32")
        shape = tuple(frames.get_shape())
    if len(shape) != 2 or not (
        1 <= shape[0] <= MAX_FRAMES and 1 <= shape[1] <= MAX_DIM
    ):
        raise ValueError(f"frames are {list(shape)}, not [M, C]")
    return (shape[0], shape[1]), metadata


def _to_facts(metadata: dict[str, str]) -> Facts:
    return Facts(
        fingerprint=metadata["fingerprint"],
        model=metadata["model"],
        frame_rate=float(metadata["frame_rate"]),
        name=metadata["name"],
    )


def _open_frames(path: Path, shape: tuple[int, int]) -> StoredFrames:
    """Frames of an open file, which closes when they are deleted.

    Not mapped into memory: truncating a mapped file would kill the process, and
    pages that were read would count as its memory.
    """
    stream = open(path, "rb")
    first = 8 + int.from_bytes(stream.read(8), "little")

    def read(start: int, stop: int) -> torch.Tensor:
        frames = torch.empty(stop - start, shape[1])
        stream.seek(first + start * shape[1] * 4)
        if stream.readinto(frames.numpy().data) != frames.numel() * 4:
            raise VoiceError(
                f"{path}: was cut while it was in use; load it again"
            )
        return frames

    return StoredFrames(read, shape, stream.close)
