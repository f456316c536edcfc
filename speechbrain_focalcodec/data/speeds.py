"""Adds copies of utterances at other speeds to a manifest."""

from collections.abc import Sequence
from pathlib import Path

from speechbrain_focalcodec.data.manifest import read_manifest, write_manifest
from speechbrain_focalcodec.errors import ConfigError, DataError

__all__ = ["add_speeds"]

# Beyond these it does not sound like a voice.
SLOWEST, FASTEST = 0.5, 2.0


def add_speeds(manifest: str | Path, speeds: Sequence[float]) -> None:
    """Add copies of all utterances to a manifest, at other speeds.

    The pitch changes with the speed, so the copies at one speed are speakers
    of their own (Ko et al., Audio Augmentation for Speech Recognition, 2015).
    No audio is written: a copy states another sample rate of the same file, and
    is resampled from that.

    Arguments
    ---------
    manifest : str or Path
        A manifest of data preparation. Copies are called ``ID@SPEED``, their
        speakers ``SPEAKER@SPEED``.
    speeds : sequence of float
        Between 0.5 and 2, without 1 and duplicates.

    Raises
    ------
    ConfigError
        If a speed is out of range, is 1, or comes twice.
    DataError
        If the manifest cannot be read, or has copies already.
    """
    for speed in speeds:
        if not SLOWEST <= speed <= FASTEST or speed == 1:
            raise ConfigError(
                f"speeds: {speed} is not between {SLOWEST:g} and {FASTEST:g}, "
                "or is 1, which needs no copy"
            )
    if len(set(speeds)) < len(speeds):
        raise ConfigError(f"speeds: {list(speeds)} has one of them twice")
    entries = read_manifest(manifest)
    copies = {
        f"{utt_id}@{speed:g}": _at_speed(entry, speed)
        for utt_id, entry in entries.items()
        for speed in speeds
    }
    if shared := entries.keys() & copies.keys():
        raise DataError(
            f"{manifest}: has {min(shared)} already: prepare the data again"
        )
    write_manifest(manifest, entries | copies)


def _at_speed(entry: dict, speed: float) -> dict:
    # Multiples of 100 Hz have short filters to resample with.
    rate = round(entry["sample_rate"] * speed / 100) * 100
    copy = {
        **entry,
        "sample_rate": rate,
        "duration": entry["num_samples"] / rate,
    }
    if entry.get("spk_id") is not None:
        copy["spk_id"] = f"{entry['spk_id']}@{speed:g}"
    return copy
