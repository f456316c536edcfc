"""The file of a prepared voice reference: safetensors with a closed content.

One float32 tensor, ``frames`` [M, C], and these facts as metadata, all of them
strings: ``format``, ``version``, ``model``, ``fingerprint``, ``frame_rate``
and ``name``. Any safetensors library reads it. Here the frames are written
and read part by part: an hour of speech is 0.74 GB at full size.
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
    """Frames on disk, read part by part; threads may share them.

    Arguments
    ---------
    read : callable
        ``read(start, stop)`` gives frames, float32 [stop - start, C].
    shape : (int, int)
        Number of frames M and their dimension C.
    close : callable
        Called when nobody can read them any more.

    Example
    -------
    >>> zeros = lambda start, stop: torch.zeros(stop - start, 2)
    >>> StoredFrames(zeros, (9, 2), lambda: None).read(1, 3)
    tensor([[0., 0.],
            [0., 0.]])
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
        """Read some frames.

        Arguments
        ---------
        start, stop : int
            Which; at least one.

        Returns
        -------
        torch.Tensor
            float32 [stop - start, C].
        """
        with self._lock:
            return self._read(start, stop)


@dataclass(frozen=True)
class Facts:
    """What a reference says about itself.

    Arguments
    ---------
    fingerprint : str
        SHA-256 (hex) of the model that made the frames.
    model : str
        That model's name.
    frame_rate : float
        Frames a second (Hz).
    name : str
        What the speaker is called; may be empty.

    Raises
    ------
    VoiceError
        If one is out of range.

    Example
    -------
    >>> Facts("0" * 64, "mini", 50.0).name
    ''
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
        for key, fine in in_range.items():
            if not fine:
                raise VoiceError(f"{key} is out of range; prepare it again")


def check_name(path: Path) -> None:
    """Refuse another suffix than a reference's.

    Arguments
    ---------
    path : Path
        A file to write.

    Raises
    ------
    VoiceError
        If its suffix is another.
    """
    if path.suffix.lower() != SUFFIX:
        raise VoiceError(f"{path}: a reference's name must end in {SUFFIX}")


def write_voice(
    path: str | Path,
    parts: Iterable[torch.Tensor],
    shape: tuple[int, int],
    facts: Facts,
) -> None:
    """Write a reference, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file to write, with suffix ``.safetensors``.
    parts : iterable of torch.Tensor
        All frames in order, float32 [T, C] each, on the CPU.
    shape : (int, int)
        Number of frames M and their dimension C.
    facts : Facts
        What the file says about them.

    Raises
    ------
    VoiceError
        If the suffix is another.
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
    # The library's own writer wants all frames in memory, as bytes.
    header = json.dumps({"__metadata__": metadata, "frames": entry}).encode()
    header += b" " * (-len(header) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for part in parts:
            stream.write(part.contiguous().numpy().data)


def read_voice(path: str | Path) -> tuple[StoredFrames, Facts]:
    """Open a reference; nothing in it is executed, no size is trusted.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    frames : StoredFrames
        Read from the file as they are needed: it stays open as long as they
        are wanted, and may be replaced meanwhile, but not changed.
    facts : Facts
        What it says about them.

    Raises
    ------
    VoiceError
        If the file is missing, damaged, of another kind or version, or its
        content is not what a reference has. Values of frames are not checked.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> _ = path.write_bytes(b"something else")
    >>> read_voice(path)
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.VoiceError: ...a.safetensors: no voice ...
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
    """Shape and metadata, if the file has what a reference has."""
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
    """Frames of an open file, which closes when nobody can read it more.

    Not mapped into memory: a mapped file that someone cuts ends the process,
    and what was read of it counts as the process's memory.
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
