"""Audio files and devices: checking, reading, resampling, writing."""

from speechbrain_focalcodec.audio.files import (
    AUDIO_SUFFIXES,
    find_audio_files,
    read_audio,
    write_audio,
)
from speechbrain_focalcodec.audio.gate import check_sig
from speechbrain_focalcodec.audio.resampling import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    resample,
    resampled_length,
)
from speechbrain_focalcodec.audio.stream import WRITE_FORMATS

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
