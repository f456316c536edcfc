"""Reads slices of audio files."""

import numpy as np
import soundfile

from speechbrain_focalcodec.audio.gate import open_slices
from speechbrain_focalcodec.errors import AudioError

__all__ = ["read_slice"]


def read_slice(
    path: str,
    start: int,
    stop: int,
    allow_int16: bool = False,
    channel: int | None = None,
) -> np.ndarray:
    """Read samples start..stop of a file as one channel.

    Arguments
    ---------
    path : str
        The file.
    start, stop : int
        The slice, in samples of a channel.
    allow_int16 : bool
        Whether to return int16 if that is exact.
    channel : int, optional
        The channel to read, from 0; the mean of all by default.

    Returns
    -------
    np.ndarray
        float32 [stop - start], or int16.

    Raises
    ------
    AudioError
        If the file cannot be read, ends early or is not finite.
    """
    try:
        with open_slices(path, stop) as file:
            exact = file.subtype == "PCM_16" and file.channels == 1
            file.seek(start)
            sig = file.read(
                stop - start,
                dtype="int16" if exact and allow_int16 else "float32",
                always_2d=True,
            )
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"cannot read {path}: {error}") from error
    if len(sig) != stop - start:
        raise AudioError(
            f"{path} ends early: it gives {len(sig)} of the samples {start} "
            f"to {stop} that its manifest promises; fetch the file again"
        )
    if not np.isfinite(sig).all():
        raise AudioError(f"{path} holds samples that are not finite")
    if channel is not None:
        sig = sig[:, channel : channel + 1]
    return sig[:, 0] if sig.shape[1] == 1 else sig.mean(axis=1)
