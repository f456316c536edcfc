"""Splits for training and validation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.data.manifest import (
    read_manifest,
    split_manifest,
    write_manifest,
)
from speechbrain_focalcodec.data.splits import (
    hold_out_speakers,
    merge_manifests,
)
from speechbrain_focalcodec.errors import DataError


def make_entries(counts, prefix=""):
    """Make utterances, given the number of each speaker."""
    return {
        f"{prefix}s{speaker}-{i}": {"spk_id": f"{prefix}s{speaker}"}
        for speaker, count in enumerate(counts)
        for i in range(count)
    }


def speakers_of(entries):
    return {entry["spk_id"] for entry in entries.values()}


@pytest.fixture
def folder(tmp_path):
    for split, counts in {"a": [10] * 5, "b": [1] * 20, "c": [1, 2]}.items():
        write_manifest(
            tmp_path / f"{split}.json", make_entries(counts, prefix=split)
        )
    return tmp_path


@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=8),
    seed=st.integers(0, 5),
    data=st.data(),
)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_whole_speakers_are_held_out(counts, seed, data):
    # The largest number that always leaves a speaker.
    number = data.draw(st.integers(1, sum(sorted(counts)[:-1])))
    entries = make_entries(counts)
    try:
        kept, held_out = hold_out_speakers(entries, number, seed)
    except DataError:
        # Speakers that fit badly can use all of them up, but only where
        # nearly all utterances are asked for.
        assert number > sum(counts) - 2 * max(counts)
        return
    assert len(held_out) == number
    assert kept
    assert not speakers_of(kept) & speakers_of(held_out)
    # A speaker that stays keeps all utterances.
    for utt_id, entry in entries.items():
        assert (utt_id in kept) == (entry["spk_id"] in speakers_of(kept))
    # The order of the utterances does not matter, the seed decides.
    again = hold_out_speakers(dict(reversed(entries.items())), number, seed)
    assert again == (kept, held_out)


def test_the_seed_changes_the_speakers_held_out():
    entries = make_entries([1] * 20)
    held_out = [hold_out_speakers(entries, 5, seed)[1] for seed in range(3)]
    assert held_out[0] != held_out[1] != held_out[2]


def test_splits_are_merged(folder):
    paths = merge_manifests(folder, ["a", "b"], ["c"])
    assert paths == {
        "train": folder / "train.json",
        "valid": folder / "valid.json",
    }
    train, valid = (read_manifest(paths[name]) for name in ["train", "valid"])
    assert train == read_manifest(folder / "a.json") | read_manifest(
        folder / "b.json"
    )
    assert valid == read_manifest(folder / "c.json")


def test_validation_speakers_are_held_out_of_training(folder):
    paths = merge_manifests(folder, ["a", "b"], ["c"], num_valid=13, seed=3)
    train, valid = (read_manifest(paths[name]) for name in ["train", "valid"])
    assert len(train) == 70 - 13
    assert len(valid) == 3 + 13
    assert not speakers_of(train) & speakers_of(valid)


def test_the_number_of_training_utterances_can_be_bounded(folder):
    def merge(**options):
        paths = merge_manifests(folder, ["a", "b"], ["c"], **options)
        return read_manifest(paths["train"])

    assert len(merge(max_utterances=7)) == 7
    assert merge(max_utterances=7) != merge(max_utterances=7, seed=1)
    assert len(merge(max_utterances=700)) == 70


def test_splits_may_be_called_train_and_valid(folder):
    for split, counts in {"train": [3], "valid": [2]}.items():
        entries = make_entries(counts, prefix=split)
        write_manifest(split_manifest(folder, split), entries)
    paths = merge_manifests(folder, ["train", "a"], ["valid"])
    assert len(read_manifest(paths["train"])) == 53
    assert len(read_manifest(paths["valid"])) == 2


@pytest.mark.parametrize("seed", range(5))
def test_utterances_without_a_speaker_are_held_out_one_by_one(seed):
    entries = make_entries([4]) | {f"file{i}": {} for i in range(10)}
    # A speaker called as a file is not that file.
    entries["x"] = {"spk_id": "file0"}
    kept, held_out = hold_out_speakers(entries, 7, seed)
    assert kept | held_out == entries  # nobody had to be cut
    assert len(held_out) == 7
    known = speakers_of(make_entries([4]))
    assert not known & {entry.get("spk_id") for entry in kept.values()} or (
        not known & {entry.get("spk_id") for entry in held_out.values()}
    )


def test_merging_again_leaves_the_files_alone(folder):
    paths = merge_manifests(folder, ["a"], num_valid=10)
    before = [path.stat().st_mtime_ns for path in paths.values()]
    merge_manifests(folder, ["a"], num_valid=10)
    assert [path.stat().st_mtime_ns for path in paths.values()] == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train_splits": ["z"], "valid_splits": ["c"]}, "z.json.*preparation"),
        ({"train_splits": ["a"], "valid_splits": ["a"]}, "a: in train_splits"),
        ({"train_splits": ["a"]}, "valid_splits or num_valid"),
        ({"train_splits": [], "valid_splits": ["a"]}, "set train_splits"),
        ({"train_splits": ["a"], "num_valid": 50}, "num_valid=50"),
        ({"train_splits": ["a"], "num_valid": 70}, "num_valid=70"),
        ({"train_splits": ["a", "a"], "valid_splits": ["b"]}, "in another"),
    ],
)
def test_bad_requests_are_refused(folder, arguments, message):
    with pytest.raises(DataError, match=message):
        merge_manifests(folder, **arguments)
    assert not (folder / "valid.json").exists()


@pytest.mark.parametrize("name", ["valid_splits", "test_splits"])
def test_training_utterances_cannot_be_tested_on(folder, name):
    """Manifests of two names may share utterances; nothing is written then."""
    paths = merge_manifests(folder, ["a"], ["b"])
    before = paths["train"].read_bytes()
    entries = read_manifest(split_manifest(folder, "c"))
    shared = read_manifest(split_manifest(folder, "a"))
    write_manifest(folder / "d.json", entries | dict([shared.popitem()]))
    splits = {"valid_splits": ["b"], name: ["d"]}
    with pytest.raises(DataError, match=f"1 utterance.* of {name}"):
        merge_manifests(folder, ["a"], **splits)
    assert paths["train"].read_bytes() == before
