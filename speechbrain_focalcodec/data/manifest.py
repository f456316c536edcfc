"""Reads and writes JSON manifests of utterances."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.data.scan import read_header
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = [
    "is_manifest",
    "manifest_split",
    "read_manifest",
    "split_manifest",
    "take_manifests",
    "write_manifest",
]

# The manifests that splits are joined into; see `splits.py`.
JOINED = ("train", "valid")


def is_manifest(split: str) -> bool:
    """Whether a split is the path of a JSON manifest, not a name."""
    return split.endswith(".json")


def manifest_split(path: str) -> str:
    """Name of the split of a user's manifest: its file's name and a hash."""
    place = str(Path(path).resolve()).encode()
    return (
        f"{Path(path).stem}-{hashlib.blake2b(place, digest_size=4).hexdigest()}"
    )


def take_manifests(
    paths: Sequence[str], data_folder: str | Path, save_folder: str | Path
) -> None:
    """Use manifests of other SpeechBrain recipes as prepared splits.

    Each utterance needs "wav", a path in which ``{data_root}`` stands for the
    data folder. Lengths and sample rates are read from the files, the speaker
    ("spk_id") is kept.

    Arguments
    ---------
    paths : sequence of str
        The manifests, such as a recipe's ``save/train.json``.
    data_folder : str or Path
        Value of ``{data_root}``.
    save_folder : str or Path
        Folder that :func:`split_manifest` of :func:`manifest_split` is written
        to.

    Raises
    ------
    DataError
        If a manifest or a file cannot be read, or an utterance has no "wav".
    """
    for path in paths:
        entries = read_manifest(path)
        with ThreadPoolExecutor() as pool:
            numbers = pool.map(
                partial(_read_numbers, path, str(data_folder)), entries.items()
            )
            taken = dict(zip(entries, numbers, strict=True))
        # A dataset wants the same keys of all.
        if all("spk_id" in entry for entry in entries.values()):
            for utt_id, entry in entries.items():
                taken[utt_id]["spk_id"] = entry["spk_id"]
        write_manifest(split_manifest(save_folder, manifest_split(path)), taken)


def _read_numbers(
    path: str, data_folder: str, item: tuple[str, dict]
) -> dict[str, Any]:
    """An utterance of a manifest as preparation writes it."""
    utt_id, entry = item
    wav = entry.get("wav")
    if not isinstance(wav, str):
        raise DataError(f"the utterance {utt_id} of {path} lacks wav")
    try:
        num_samples, sample_rate = read_header(
            Path(wav.replace("{data_root}", data_folder))
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"the utterance {utt_id} of {path}: {error}; data_folder must be "
            "what {data_root} stands for"
        ) from error
    return {
        "wav": wav,
        "num_samples": num_samples,
        "sample_rate": sample_rate,
        "duration": num_samples / sample_rate,
    }


def split_manifest(save_folder: str | Path, split: str) -> Path:
    """Path of a split's manifest, ``SPLIT.json``.

    Splits called train and valid get ``.split.json``: training reads manifests
    of those names.
    """
    kind = ".split.json" if split in JOINED else ".json"
    return Path(save_folder) / f"{split}{kind}"


def write_manifest(path: str | Path, entries: dict[str, dict]) -> None:
    """Write a manifest, sorted by id; an equal one is not written again."""
    path = Path(path)
    entries = {utt_id: entries[utt_id] for utt_id in sorted(entries)}
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (OSError, UnicodeDecodeError):
        pass  # missing or damaged: written anew
    atomic_write_text(path, text)


def read_manifest(path: str | Path) -> dict[str, dict]:
    """Return the utterances of a manifest by id.

    Raises DataError if the file is missing or is not a manifest.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read the manifest {path} ({error.strerror}): run the "
            "data preparation first"
        ) from error
    except ValueError as error:
        raise DataError(
            f"the manifest {path} is damaged ({error}): remove it and run "
            "the data preparation again"
        ) from error
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) for entry in entries.values()
    ):
        raise DataError(
            f"the manifest {path} does not map utterance ids to utterances"
        )
    return entries
