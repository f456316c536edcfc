"""Reads headers and waveforms of a corpus's items in worker processes.

Functions return the error message of a file that cannot be read, since a
corpus with bad files is processed all the same.
"""

import os
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_focalcodec.audio.files import read_audio
from speechbrain_focalcodec.audio.gate import CheckedFile
from speechbrain_focalcodec.audio.resampling import resample
from speechbrain_focalcodec.audio.slices import read_slice
from speechbrain_focalcodec.audio.stream import MAX_STREAM_DURATION
from speechbrain_focalcodec.errors import AudioError

__all__ = ["AudioJob", "Header", "read_header", "read_sig"]


class AudioJob(NamedTuple):
    """A file, or a segment of it, to read.

    Arguments
    ---------
    path : str
        The file.
    start, stop : float, optional
        The segment in seconds; the whole file by default.
    channel : int, optional
        The channel, from 0; the mean of all by default.
    strict : bool
        Whether warnings are errors. Segments cause no warnings.
    """

    path: str
    start: float | None = None
    stop: float | None = None
    channel: int | None = None
    strict: bool = False


class Header(NamedTuple):
    """Header of an item.

    Arguments
    ---------
    num_samples : int
        Number of samples.
    sample_rate : int
        Sample rate of the file in Hz.
    num_bytes : int
        Size of the file.
    """

    num_samples: int
    sample_rate: int
    num_bytes: int


def read_header(job: AudioJob) -> Header | str:
    """Read an item's header; return an error message if that fails."""
    try:
        with CheckedFile(job.path, MAX_STREAM_DURATION, job.channel) as file:
            total, rate = file.num_frames, file.sample_rate
        first, last = _samples(job, total, rate)
        return Header(last - first, rate, os.path.getsize(job.path))
    except AudioError as error:
        return str(error)


def read_sig(job: AudioJob, sample_rate: int | None) -> np.ndarray | str:
    """Decode and resample an item: float32 [T], or an error message.

    The file's own sample rate is kept if `sample_rate` is None.
    """
    try:
        if job.start is None and job.stop is None:
            sig, _ = read_audio(
                *(job.path, sample_rate, MAX_STREAM_DURATION),
                *(job.channel, job.strict),
            )
            return sig.numpy()
        # Checks the header of the whole file.
        with CheckedFile(job.path, MAX_STREAM_DURATION, job.channel) as file:
            total, rate = file.num_frames, file.sample_rate
        first, last = _samples(job, total, rate)
        sig = torch.from_numpy(
            read_slice(job.path, first, last, channel=job.channel)
        )
        if sample_rate is not None:
            sig = resample(sig, rate, sample_rate)
        return sig.numpy()
    except AudioError as error:
        return str(error)


def _samples(job: AudioJob, total: int, rate: int) -> tuple[int, int]:
    """First and last sample of an item, as they are in the file."""
    first = 0 if job.start is None else round(job.start * rate)
    last = total if job.stop is None else round(job.stop * rate)
    # Times of segments are rounded: a hundredth of a second is no damage.
    if last > total and last - total <= rate // 100:
        last = total
    if not 0 <= first < last <= total:
        raise AudioError(
            f"{job.path}: has no part from {first / rate:.6g} to "
            f"{last / rate:.6g} s, its length is {total / rate:.6g} s; "
            "correct the segment"
        )
    return first, last
