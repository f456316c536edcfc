"""Which utterances train, which validate and which test."""

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

# A split may be called test; none is called this.
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
    """Write ``train.json`` and ``valid.json`` from prepared splits.

    With splits to test on, ``test.joined.json`` too.

    Arguments
    ---------
    save_folder : str or Path
        The folder that holds the splits' manifests; those are written there.
    train_splits : sequence of str
        Splits to train on.
    valid_splits : sequence of str
        Splits to validate on.
    num_valid : int
        Number of utterances to validate on, besides `valid_splits`, that are
        held out of the training splits by whole speakers, where speakers
        are known, and one by one where they are not.
    max_utterances : int, optional
        Train on a random choice of this many utterances at most.
    seed : int
        Seed of both choices.
    test_splits : sequence of str
        Splits to test on at the end; some may be those of validation.

    Returns
    -------
    dict
        The paths, by "train" and "valid", and by "test" with `test_splits`.

    Raises
    ------
    DataError
        When a manifest is missing, a split is in both lists, an utterance is
        trained and tested on, or there is nothing to validate on or to train
        on.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for split in ["a", "b"]:
    ...     entry = {"spk_id": split, "duration": 1.0}
    ...     write_manifest(folder / f"{split}.json", {f"{split}1": entry})
    >>> paths = merge_manifests(folder, ["a", "b"], num_valid=1, seed=1)
    >>> len(read_manifest(paths["train"])), len(read_manifest(paths["valid"]))
    (1, 1)
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
    """Return the utterances of several prepared splits.

    Arguments
    ---------
    save_folder : str or Path
        The folder that holds the splits' manifests.
    splits : sequence of str
        Names of the splits.

    Returns
    -------
    dict
        The utterances by their id.

    Raises
    ------
    DataError
        When a manifest is missing or an id is in two splits.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> write_manifest(folder / "a.json", {"a1": {"spk_id": "a"}})
    >>> join_splits(folder, ["a"])
    {'a1': {'spk_id': 'a'}}
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
    """Tell how much is in a split.

    Arguments
    ---------
    utterances : iterable of (float, str or None)
        Seconds and speaker of each; `None` where it is unknown.

    Returns
    -------
    str
        Utterances, hours and, where they are known, speakers.

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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def check_apart(
    train: Iterable[str], others: Mapping[str, Iterable[str]]
) -> None:
    """Refuse training data with utterances that shall tell how good it is.

    Arguments
    ---------
    train : iterable of str
        Ids of what is trained on.
    others : mapping
        Ids by split, such as ``valid`` and ``test``.

    Raises
    ------
    DataError
        If an id is in both.

    Example
    -------
    >>> check_apart(["a", "b"], {"valid": ["c"], "test": ["b"]})
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.DataError: 1 utterance(s) of test are ...
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

    Speakers are drawn at random and held out whole while they fit; an
    utterance without "spk_id" counts as a speaker of its own. Where they
    cannot add up to the number exactly, the smallest speaker left is taken
    too, and its excess utterances are in neither part.

    Arguments
    ---------
    entries : dict
        The utterances by their id, with "spk_id" where it is known.
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
        When no speaker would be left.

    Example
    -------
    >>> entries = {
    ...     f"{speaker}{i}": {"spk_id": speaker}
    ...     for speaker in "abcd"
    ...     for i in range(3)
    ... }
    >>> kept, held_out = hold_out_speakers(entries, 6)
    >>> len(kept), len(held_out)
    (6, 6)
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

    Of each class, the shares of its utterances, rounded, and one at least, are
    drawn to validate and to test on. Classes of fewer than three utterances,
    and utterances without a class, are left out.

    Arguments
    ---------
    save_folder : str or Path
        The folder that holds the splits' manifests; ``train.json``,
        ``valid.json`` and ``test.joined.json`` are written there.
    splits : sequence of str
        Splits to divide.
    column : str
        The key that names the class, such as ``spk_id``.
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
        When no class is left, or the shares leave nothing to train on.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> entries = {f"{s}{i}": {"spk_id": s} for s in "ab" for i in range(10)}
    >>> write_manifest(folder / "c.json", entries)
    >>> paths = split_within(folder, ["c"], "spk_id", 0.1, 0.2)
    >>> [len(read_manifest(path)) for path in paths.values()]
    [14, 2, 4]
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
