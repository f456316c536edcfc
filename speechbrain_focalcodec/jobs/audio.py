"""Reading a corpus's audio: what a worker process does with one item.

What is wrong with a file is a result here, not an exception: a corpus has bad
files, and its run goes on.
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
    """A file, or a part of it, and what of it is read.

    Arguments
    ---------
    path : str
        The file.
    start, stop : float, optional
        The part (s); the whole file by default.
    channel : int, optional
        The channel, from 0; the mean of all by default.
    strict : bool
        Whether a warning is an error. Parts of files
        are neither logged nor wrong.
    """

    path: str
    start: float | None = None
    stop: float | None = None
    channel: int | None = None
    strict: bool = False


class Header(NamedTuple):
    """What is known of an item before it is decoded.

    Arguments
    ---------
    num_samples : int
        Its length.
    sample_rate : int
        The file's sample rate (Hz).
    num_bytes : int
        The file's size.
    """

    num_samples: int
    sample_rate: int
    num_bytes: int


def read_header(job: AudioJob) -> Header | str:
    """Read what a file claims.

    Arguments
    ---------
    job : AudioJob
        The item.

    Returns
    -------
    Header or str
        Its length, rate and size, or what is wrong.
    """
    try:
        with CheckedFile(job.path, MAX_STREAM_DURATION, job.channel) as file:
            total, rate = file.num_frames, file.sample_rate
        first, last = _samples(job, total, rate)
        return Header(last - first, rate, os.path.getsize(job.path))
    except AudioError as error:
        return str(error)


def read_sig(job: AudioJob, sample_rate: int | None) -> np.ndarray | str:
    """Decode and resample an item.

    Arguments
    ---------
    job : AudioJob
        The item.
    sample_rate : int, optional
        The sample rate wanted, in Hz; ``None`` for the file's own.

    Returns
    -------
    np.ndarray or str
        The channel, or the mean of all, float32 [T], or what is wrong.
    """
    try:
        if job.start is None and job.stop is None:
            sig, _ = read_audio(
                *(job.path, sample_rate, MAX_STREAM_DURATION),
                *(job.channel, job.strict),
            )
            return sig.numpy()
        # Checks what the whole file claims.
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
