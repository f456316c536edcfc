"""JSON manifests of utterances, and preparing them from folders of audio.

:func:`prepare_splits` is the engine of all data preparation: a corpus is a
:class:`~speechbrain_focalcodec.data.scan.Corpus`, and `scan.py` says how its
files are found and read.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.data.scan import (
    Corpus,
    read_header,
    scan_split,
)
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = [
    "is_manifest",
    "manifest_split",
    "prepare_splits",
    "read_manifest",
    "split_manifest",
    "take_manifests",
    "write_manifest",
]

# What splits are joined into; see `splits.py`.
JOINED = ("train", "valid")


def prepare_splits(
    corpus: Corpus,
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str],
    num_workers: int | None = None,
    skip_prep: bool = False,
    max_failures: float = 0.0,
    decode: bool = False,
) -> dict[str, Path]:
    """Write one manifest for each split of a corpus.

    Arguments
    ---------
    corpus : Corpus
        What to look for.
    data_folder : str or Path
        The folder that holds the splits, or its parent. Only read from.
    save_folder : str or Path
        Where the manifests go; it must lie outside the data folder.
    splits : sequence of str
        Names of the splits' folders.
    num_workers : int, optional
        Number of threads; by default a few more than the machine has cores.
    skip_prep : bool
        Do nothing but return the paths (the manifests exist already).
    max_failures : float
        Share of a split's files that may be unreadable, and are then
        skipped and listed in ``SPLIT.skipped.tsv``.
    decode : bool
        Decode each file to its end, to find damage that headers hide.

    Returns
    -------
    dict
        Path of the manifest for each split.

    Raises
    ------
    DataError
        When the data folder or a split is missing, a split is empty, too
        many files are unreadable, or the save folder lies in the data
        folder.

    Example
    -------
    >>> import numpy, soundfile
    >>> tmp = getfixture("tmp_path")
    >>> chapter = tmp / "data" / "dev" / "spk1" / "chap1"
    >>> chapter.mkdir(parents=True)
    >>> soundfile.write(chapter / "utt1.wav", numpy.zeros(800), 16000)
    >>> corpus = Corpus("Mine", suffixes=(".wav",))
    >>> paths = prepare_splits(corpus, tmp / "data", tmp / "save", ["dev"])
    >>> read_manifest(paths["dev"])["utt1"]["wav"]
    '{data_root}/dev/spk1/chap1/utt1.wav'
    """
    save_folder = Path(save_folder)
    splits = [splits] if isinstance(splits, str) else list(splits)
    paths = {split: split_manifest(save_folder, split) for split in splits}
    if skip_prep:
        return paths
    data_folder = Path(data_folder)
    if not data_folder.is_dir():
        raise DataError(
            f"the data folder {data_folder} does not exist: give the folder "
            f"that holds the splits of {corpus.name}"
        )
    if save_folder.resolve().is_relative_to(data_folder.resolve()):
        raise DataError(
            f"the save folder {save_folder} lies in the data folder "
            f"{data_folder}, which is never written to: choose another one"
        )
    root = corpus.find_root(data_folder, splits)
    for split in splits:
        entries = scan_split(
            corpus,
            data_folder,
            root,
            split,
            save_folder / f"{split}.headers.jsonl",
            num_workers,
            max_failures,
            decode,
        )
        write_manifest(paths[split], entries)
    return paths


def is_manifest(split: str) -> bool:
    """Tell whether a split is given as a manifest of its own.

    Arguments
    ---------
    split : str
        Name of a split, or path of a JSON manifest.

    Returns
    -------
    bool
        Whether it is a path.

    Example
    -------
    >>> is_manifest("train-clean-100"), is_manifest("old/save/train.json")
    (False, True)
    """
    return split.endswith(".json")


def manifest_split(path: str) -> str:
    """Name of the split that a manifest of the user's becomes.

    Arguments
    ---------
    path : str
        The manifest.

    Returns
    -------
    str
        Its file's name, and what tells it from others of that name.

    Example
    -------
    >>> manifest_split("old/save/train.json")
    'train-...'
    """
    place = str(Path(path).resolve()).encode()
    return (
        f"{Path(path).stem}-{hashlib.blake2b(place, digest_size=4).hexdigest()}"
    )


def take_manifests(
    paths: Sequence[str], data_folder: str | Path, save_folder: str | Path
) -> None:
    """Take manifests of other SpeechBrain recipes as prepared splits.

    Of each utterance "wav" is needed, a path in which ``{data_root}`` stands
    for the data folder. Lengths and sample rates are read from the files, the
    speaker ("spk_id") is kept.

    Arguments
    ---------
    paths : sequence of str
        The manifests, such as a recipe's ``save/train.json``.
    data_folder : str or Path
        What ``{data_root}`` stands for.
    save_folder : str or Path
        Where :func:`split_manifest` of :func:`manifest_split` is written.

    Raises
    ------
    DataError
        If a manifest or a file cannot be read, or an utterance has no "wav".

    Example
    -------
    >>> import numpy, soundfile
    >>> tmp = getfixture("tmp_path")
    >>> soundfile.write(tmp / "a.wav", numpy.zeros(800), 16000)
    >>> path = str(tmp / "train.json")
    >>> write_manifest(path, {"a": {"wav": "{data_root}/a.wav"}})
    >>> take_manifests([path], tmp, tmp)
    >>> read_manifest(split_manifest(tmp, manifest_split(path)))
    {'a': {'wav': '{data_root}/a.wav', 'num_samples': 800, ...
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
    """An utterance of a manifest, as preparation writes it."""
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
    """Where the manifest of a split lies.

    Arguments
    ---------
    save_folder : str or Path
        The folder of the manifests.
    split : str
        Name of the split.

    Returns
    -------
    Path
        ``SPLIT.json``; splits called train and valid get ``.split.json``, as
        those names are taken by what training reads.

    Example
    -------
    >>> split_manifest("save", "dev").name, split_manifest("save", "train").name
    ('dev.json', 'train.split.json')
    """
    kind = ".split.json" if split in JOINED else ".json"
    return Path(save_folder) / f"{split}{kind}"


def write_manifest(path: str | Path, entries: dict[str, dict]) -> None:
    """Write a manifest, sorted by id; an equal one is left as it is.

    Arguments
    ---------
    path : str or Path
        The file to write.
    entries : dict
        The utterances by their id.

    Example
    -------
    >>> path = getfixture("tmp_path") / "dev.json"
    >>> write_manifest(path, {"b": {"duration": 1.0}, "a": {"duration": 2.0}})
    >>> list(read_manifest(path))
    ['a', 'b']
    """
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
    """Read a manifest.

    Arguments
    ---------
    path : str or Path
        A file that preparation has written.

    Returns
    -------
    dict
        The utterances by their id.

    Raises
    ------
    DataError
        When the file is missing or is not a manifest.

    Example
    -------
    >>> read_manifest("nowhere/dev.json")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    speechbrain_focalcodec.errors.DataError: cannot read the manifest ...
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
