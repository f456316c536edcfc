"""Splits utterances into those for training, validation and test."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from speechbrain_focalcodec.data.manifest import (
    JOINED,
    read_manifest,
    split_manifest,
    write_manifest,
)
from speechbrain_focalcodec.errors import DataError

__all__ = [
    "check_apart",
    "describe_split",
    "hold_out_speakers",
    "join_splits",
    "merge_manifests",
    "split_within",
]

# Not test.json: a split may be called test.
TEST_NAME = "test.joined.json"


def merge_manifests(
    save_folder: str | Path,
    train_splits: Sequence[str],
    valid_splits: Sequence[str] = (),
    num_valid: int = 0,
    max_utterances: int | None = None,
    seed: int = 0,
    test_splits: Sequence[str] = (),
) -> dict[str, Path]:
    """Write ``train.json``, ``valid.json`` and perhaps ``test.joined.json``.

    Arguments
    ---------
    save_folder : str or Path
        The folder of the splits' manifests and of those that are written.
    train_splits : sequence of str
        Splits to train on.
    valid_splits : sequence of str
        Splits to validate on.
    num_valid : int
        Number of utterances of the training splits to validate on, besides
        `valid_splits`. Whole speakers are held out; without speakers, single
        utterances.
    max_utterances : int, optional
        Train on a random choice of at most this many utterances.
    seed : int
        Seed of both choices.
    test_splits : sequence of str
        Splits to test on; some may be those of validation.

    Returns
    -------
    dict
        The paths, by "train" and "valid", and by "test" with `test_splits`.

    Raises
    ------
    DataError
        If a manifest is missing, a split is in both lists, an utterance is
        trained and tested on, or there is nothing to validate on or to train
        on.
    """
    save_folder = Path(save_folder)
    shared = set(train_splits) & set(valid_splits)
    if shared:
        raise DataError(
            f"{', '.join(sorted(shared))}: in train_splits and valid_splits"
        )
    paths = {name: save_folder / f"{name}.json" for name in JOINED}
    train = join_splits(save_folder, train_splits)
    valid = join_splits(save_folder, valid_splits)
    test = join_splits(save_folder, test_splits)
    for name, entries in (("valid_splits", valid), ("test_splits", test)):
        if both := train.keys() & entries.keys():
            raise DataError(
                f"{len(both)} utterance(s) of {name} are trained on too, for "
                f"example {min(both)}"
            )
    if num_valid:
        train, held_out = hold_out_speakers(train, num_valid, seed)
        valid |= held_out
    if max_utterances is not None and max_utterances < len(train):
        chosen = random.Random(seed).sample(sorted(train), max_utterances)
        train = {utt_id: train[utt_id] for utt_id in chosen}
    for entries, name, hint in [
        (train, "train", "train_splits or max_utterances"),
        (valid, "valid", "valid_splits or num_valid"),
    ]:
        if not entries:
            raise DataError(f"no utterances for {name}.json: set {hint}")
    for name, entries in (("train", train), ("valid", valid)):
        write_manifest(paths[name], entries)
    if test_splits:
        paths["test"] = save_folder / TEST_NAME
        write_manifest(paths["test"], test)
    return paths


def join_splits(
    save_folder: str | Path, splits: Sequence[str]
) -> dict[str, dict]:
    """Return the utterances of several prepared splits by id.

    Raises DataError if a manifest is missing or an id is in two splits.
    """
    joined: dict[str, dict] = {}
    for split in splits:
        entries = read_manifest(split_manifest(save_folder, split))
        shared = joined.keys() & entries.keys()
        if shared:
            raise DataError(
                f"{len(shared)} utterance(s) of {split} are in another split "
                f"too, for example {min(shared)}"
            )
        joined |= entries
    return joined


def describe_split(utterances: Iterable[tuple[float, str | None]]) -> str:
    """Describe (seconds, speaker or None) of utterances in a line.

    Example
    -------
    >>> describe_split([(1800.0, "a"), (1800.0, "a")])
    '2 utterances, 1.00 h, 1 speaker'
    """
    utterances = list(utterances)
    hours = sum(seconds for seconds, _ in utterances) / 3600
    speakers = {speaker for _, speaker in utterances} - {None}
    parts = [_count(len(utterances), "utterance"), f"{hours:.2f} h"]
    if speakers:
        parts.append(_count(len(speakers), "speaker"))
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def check_apart(
    train: Iterable[str], others: Mapping[str, Iterable[str]]
) -> None:
    """Raise DataError if training ids are in another split.

    `others` holds the ids of each split, such as ``valid`` and ``test``.
    """
    trained = set(train)
    for split, ids in others.items():
        shared = trained.intersection(ids)
        if shared:
            raise DataError(
                f"{len(shared)} utterance(s) of {split} are trained on too, "
                f"for example {min(shared)}: take a training set without them "
                "(tokenise each split by itself)"
            )


def hold_out_speakers(
    entries: dict[str, dict], num_utterances: int, seed: int = 0
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Split utterances in two with no speaker in both.

    Random speakers are held out whole while they fit; an utterance without
    "spk_id" counts as its own speaker. If they do not add up to the number, the
    smallest speaker left is taken too, and its excess utterances are in neither
    part.

    Arguments
    ---------
    entries : dict
        The utterances by their id, with "spk_id" if it is known.
    num_utterances : int
        Number of utterances to hold out.
    seed : int
        Seed of the choice.

    Returns
    -------
    dict
        The utterances that stay.
    dict
        Those held out, exactly `num_utterances`.

    Raises
    ------
    DataError
        If no speaker would be left.
    """
    by_speaker = defaultdict(list)
    for utt_id in sorted(entries):
        speaker = entries[utt_id].get("spk_id")
        # Two kinds of names: that of a file may be that of a speaker.
        name = ("file", utt_id) if speaker is None else ("speaker", speaker)
        by_speaker[name].append(utt_id)
    speakers = sorted(by_speaker)
    random.Random(seed).shuffle(speakers)
    held_out: list[str] = []
    left = []
    for speaker in speakers:
        utt_ids = by_speaker[speaker]
        if len(held_out) + len(utt_ids) <= num_utterances:
            held_out += utt_ids
        else:
            left.append(speaker)
    if len(held_out) < num_utterances and left:
        smallest = min(left, key=lambda speaker: len(by_speaker[speaker]))
        left.remove(smallest)
        held_out += by_speaker[smallest][: num_utterances - len(held_out)]
    if not left:
        raise DataError(
            f"holding out num_valid={num_utterances} utterances leaves none of "
            f"the {len(speakers)} speakers to train on: lower it (or prepare "
            "the data without speakers, where folders are none)"
        )
    kept = {utt for speaker in left for utt in by_speaker[speaker]}
    return (
        {utt_id: entries[utt_id] for utt_id in entries if utt_id in kept},
        {utt_id: entries[utt_id] for utt_id in sorted(held_out)},
    )


def split_within(
    save_folder: str | Path,
    splits: Sequence[str],
    column: str,
    valid_share: float,
    test_share: float,
    seed: int = 0,
) -> dict[str, Path]:
    """Write manifests in which all three parts have the same classes.

    Of each class, the rounded shares of its utterances, at least one each, are
    drawn for validation and test. Classes of fewer than three utterances, and
    utterances without a class, are left out.

    Arguments
    ---------
    save_folder : str or Path
        The folder of the splits' manifests; ``train.json``, ``valid.json`` and
        ``test.joined.json`` are written there.
    splits : sequence of str
        Splits to divide.
    column : str
        The key that holds the class, such as ``spk_id``.
    valid_share, test_share : float
        Shares of each class.
    seed : int
        Seed of the choice.

    Returns
    -------
    dict
        The paths, by "train", "valid" and "test".

    Raises
    ------
    DataError
        If no class is left, or the shares leave nothing to train on.
    """
    if valid_share <= 0 or test_share <= 0 or valid_share + test_share >= 1:
        raise DataError(
            "valid_share and test_share must be positive and less than 1 in "
            f"all, not {valid_share} and {test_share}"
        )
    by_class = defaultdict(list)
    entries = join_splits(save_folder, splits)
    for utt_id in sorted(entries):
        name = entries[utt_id].get(column)
        if name is not None:
            by_class[name].append(utt_id)
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    drawing = random.Random(seed)
    for name in sorted(by_class, key=str):
        utt_ids = by_class[name]
        if len(utt_ids) < 3:
            continue
        drawing.shuffle(utt_ids)
        most = len(utt_ids) - 2
        num_test = min(max(1, round(test_share * len(utt_ids))), most)
        num_valid = max(1, round(valid_share * len(utt_ids)))
        num_valid = min(num_valid, most + 1 - num_test)
        parts["valid"] += utt_ids[:num_valid]
        parts["test"] += utt_ids[num_valid : num_valid + num_test]
        parts["train"] += utt_ids[num_valid + num_test :]
    if not parts["train"]:
        raise DataError(
            f"{', '.join(splits)}: no value of {column} has three utterances"
        )
    paths = {}
    for part, utt_ids in parts.items():
        name = TEST_NAME if part == "test" else f"{part}.json"
        paths[part] = Path(save_folder) / name
        write_manifest(paths[part], {u: entries[u] for u in sorted(utt_ids)})
    return paths
