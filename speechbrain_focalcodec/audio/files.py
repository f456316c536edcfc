"""Reading and writing audio files as a whole.

`gate.py` checks files; `stream.py` reads and writes files of any length.
"""

import os
from pathlib import Path

import numpy as np
import torch

from speechbrain_focalcodec.audio.gate import CheckedFile, check_sig
from speechbrain_focalcodec.audio.resampling import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    resample,
    resampled_length,
)
from speechbrain_focalcodec.audio.stream import WRITE_FORMATS, AudioWriter
from speechbrain_focalcodec.errors import AudioError

__all__ = [
    "AUDIO_SUFFIXES",
    "MAX_SAMPLE_RATE",
    "MIN_SAMPLE_RATE",
    "WRITE_FORMATS",
    "check_sig",
    "find_audio_files",
    "read_audio",
    "resample",
    "resampled_length",
    "write_audio",
]

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"),
    *(".aif", ".aiff", ".au", ".caf", ".rf64", ".w64"),
)

# Bounds on files that are read as a whole.
MAX_DURATION = 3600.0  # seconds
MAX_VALUES = 2**29  # frames x channels: 2 GiB of float32


def read_audio(
    path: str | Path,
    sample_rate: int | None = None,
    max_duration: float = MAX_DURATION,
    channel: int | None = None,
    strict: bool = False,
) -> tuple[torch.Tensor, int]:
    """Read an audio file as one checked channel.

    :class:`~speechbrain_focalcodec.audio.gate.CheckedFile` lists the formats
    and checks. Claims of the header are checked before decoding, so memory is
    bounded; for longer files see
    :class:`~speechbrain_focalcodec.audio.stream.AudioReader`.

    Arguments
    ---------
    path : str or Path
        The file to read.
    sample_rate : int, optional
        Sample rate to resample to (Hz); the file's own by default.
    max_duration : float
        Longest accepted duration (s).
    channel : int, optional
        The channel to read, from 0; the mean of all by default.
    strict : bool
        Whether to raise an error in place of a warning: channels that
        cancel, samples far outside [-1, 1], near silence.

    Returns
    -------
    sig : torch.Tensor
        The signal, float32 [T].
    sample_rate : int
        Its sample rate (Hz).

    Raises
    ------
    AudioError
        If the file is missing, unreadable, empty, cut short, not finite, or
        claims an absurd sample rate, channel count or duration, or lacks
        `channel`.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> write_audio(path, 0.5 * torch.ones(8000), 8000)
    >>> sig, sample_rate = read_audio(path, sample_rate=16000)
    >>> sig.shape, sample_rate
    (torch.Size([16000]), 16000)
    """
    with CheckedFile(path, max_duration, channel, strict) as file:
        if file.num_frames * file.num_channels > MAX_VALUES:
            raise AudioError(
                f"{path}: {file.num_frames} frames of {file.num_channels} "
                "channels are too many to decode at once; cut it in parts or "
                "down-mix it"
            )
        sig = file.read(file.num_frames)
    if sample_rate is None:
        return sig, file.sample_rate
    return resample(sig, file.sample_rate, sample_rate), sample_rate


def write_audio(
    path: str | Path, sig: torch.Tensor | np.ndarray, sample_rate: int
) -> None:
    """Write one channel to a file, atomically.

    Arguments
    ---------
    path : str or Path
        The file to write; its suffix selects the format: ``.wav`` and
        ``.flac`` (both 16 bits) or ``.ogg`` (Vorbis).
    sig : torch.Tensor or np.ndarray
        The signal, float [T]; clipped to [-1, 1].
    sample_rate : int
        Its sample rate (Hz).

    Raises
    ------
    AudioError
        If the signal is empty or not finite, or the suffix is not known.
    """
    with AudioWriter(path, sample_rate) as writer:
        writer.write(sig)


def find_audio_files(
    folder: str | Path, suffixes: tuple[str, ...] = AUDIO_SUFFIXES
) -> list[Path]:
    """List the files in a folder tree with one of some suffixes.

    Hidden files and folders, and linked folders, are skipped.

    Arguments
    ---------
    folder : str or Path
        The folder to search.
    suffixes : tuple of str
        Suffixes in lower case; audio by default.

    Returns
    -------
    list of Path
        The files in sorted order, each beginning with `folder`.

    Raises
    ------
    AudioError
        If `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioError(f"{folder}: no such folder; check the path")
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".")
            and Path(name).suffix.lower() in suffixes
        ]
    return sorted(found)
