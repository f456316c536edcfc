"""Data preparation: manifests of LibriSpeech and LibriTTS."""

import hashlib
import json
import os

import pytest
import soundfile
from make_corpus import make_corpus
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_focalcodec.data import manifest, scan
from speechbrain_focalcodec.data.corpora import (
    prepare_librispeech,
    prepare_libritts,
)
from speechbrain_focalcodec.errors import DataError

PREPARE = {"LibriSpeech": prepare_librispeech, "LibriTTS": prepare_libritts}
SUFFIX = {"LibriSpeech": ".flac", "LibriTTS": ".wav"}


def snapshot(folder):
    """Return times and hashes of all files of a folder."""
    return {
        path: (
            path.stat().st_mtime_ns,
            path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture
def count_headers(monkeypatch):
    """Count the headers read, and interrupt the reading on request."""
    read_header = scan.read_header

    class Counter:
        count = 0
        interrupt_after = None

        def __call__(self, path, decode=False):
            if self.count == self.interrupt_after:
                raise KeyboardInterrupt
            self.count += 1
            return read_header(path, decode)

    counter = Counter()
    monkeypatch.setattr(scan, "read_header", counter)
    return counter


@pytest.mark.parametrize("name", PREPARE)
@pytest.mark.parametrize("transcripts", [True, False])
@pytest.mark.parametrize("through_parent", [True, False])
def test_manifest_describes_each_file(
    tmp_path, name, transcripts, through_parent
):
    root = make_corpus(
        name, tmp_path / "data" / name, ["a", "b"], transcripts=transcripts
    )
    data_folder = root.parent if through_parent else root
    before = snapshot(tmp_path / "data")
    paths = PREPARE[name](data_folder, tmp_path / "save", ["a", "b"], 2)
    assert snapshot(tmp_path / "data") == before
    for split in ["a", "b"]:
        assert paths[split] == tmp_path / "save" / f"{split}.json"
        entries = json.loads(paths[split].read_text(encoding="utf-8"))
        assert list(entries) == sorted(entries)
        files = {
            path.stem: path
            for path in root.glob(f"{split}/*/*/*{SUFFIX[name]}")
        }
        assert entries.keys() == files.keys()
        for utt_id, entry in entries.items():
            path = files[utt_id]
            sig, sample_rate = soundfile.read(path)
            assert entry["wav"].format(data_root=data_folder) == str(path)
            assert entry["num_samples"] == len(sig)
            assert entry["sample_rate"] == sample_rate
            assert entry["duration"] == len(sig) / sample_rate
            assert entry["spk_id"] == path.parent.parent.name
            assert ("text" in entry) == transcripts
            if transcripts:
                assert entry["text"].upper().startswith("UTTERANCE ")


def test_utterances_without_transcripts_have_no_text(tmp_path):
    root = make_corpus("LibriSpeech", tmp_path / "data", ["a"], 1, 3)
    (lines,) = root.glob("a/*/*/*.trans.txt")
    lines.write_text("100-7-0001 CURLY {BRACES}\n100-7-0002\n")
    path = prepare_librispeech(root, tmp_path / "save", ["a"])["a"]
    dataset = DynamicItemDataset.from_json(path, {"data_root": str(root)})
    assert [
        dataset.data[utt_id].get("text") for utt_id in dataset.data_ids
    ] == [None, "CURLY {BRACES}", None]


def test_unchanged_files_are_not_read_again(tmp_path, count_headers):
    root = make_corpus("LibriTTS", tmp_path / "data", ["a"])
    arguments = (root, tmp_path / "save", ["a"])
    path = prepare_libritts(*arguments)["a"]
    first = path.read_text(encoding="utf-8")
    stat = path.stat()
    assert count_headers.count == 6
    prepare_libritts(*arguments)
    assert count_headers.count == 6
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    # A file that changes, goes or comes changes the manifest.
    changed, gone, *_ = sorted(root.rglob("*.wav"))
    soundfile.write(changed, [0.0] * 100, 24000)
    gone.unlink()
    new = changed.with_name("new.wav")
    soundfile.write(new, [0.0] * 200, 24000)
    prepare_libritts(*arguments)
    assert count_headers.count == 8
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert entries[changed.stem]["num_samples"] == 100
    assert entries["new"]["num_samples"] == 200
    assert entries.keys() == {
        utt_id for utt_id in json.loads(first) if utt_id != gone.stem
    } | {"new"}


def test_an_interrupted_preparation_resumes(tmp_path, count_headers):
    root = make_corpus("LibriSpeech", tmp_path / "data", ["a"], num_speakers=5)
    whole = prepare_librispeech(root, tmp_path / "whole", ["a"], 1)["a"]
    assert count_headers.count == 10
    count_headers.count, count_headers.interrupt_after = 0, 7
    arguments = (root, tmp_path / "save", ["a"], 1)
    with pytest.raises(KeyboardInterrupt):
        prepare_librispeech(*arguments)
    assert not (tmp_path / "save" / "a.json").exists()
    # The interruption also tore the journal's last line.
    journal = tmp_path / "save" / "a.headers.jsonl"
    lines = journal.read_text(encoding="utf-8")
    assert lines.count("[") == 6
    journal.write_text(lines[:-5], encoding="utf-8")
    count_headers.count, count_headers.interrupt_after = 0, None
    path = prepare_librispeech(*arguments)["a"]
    assert count_headers.count == 5
    assert path.read_bytes() == whole.read_bytes()
    prepare_librispeech(*arguments)
    assert count_headers.count == 5


def test_a_damaged_manifest_is_written_anew(tmp_path):
    root = make_corpus("LibriSpeech", tmp_path / "data", ["a"])
    path = prepare_librispeech(root, tmp_path / "save", ["a"])["a"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    prepare_librispeech(root, tmp_path / "save", ["a"])
    assert path.read_bytes() == whole


def test_skip_prep_does_nothing(tmp_path):
    paths = prepare_librispeech(
        tmp_path / "no", tmp_path / "save", ["a"], skip_prep=True
    )
    assert paths == {"a": tmp_path / "save" / "a.json"}
    assert not (tmp_path / "save").exists()


def test_links_and_hidden_files(tmp_path):
    root = make_corpus("LibriSpeech", tmp_path / "real", ["a"])
    chapter = root / "a" / "100" / "7"
    (chapter / "._100-7-0000.flac").write_bytes(b"not audio")
    (root / "a" / ".cache").mkdir()
    (tmp_path / "data").mkdir()
    os.symlink(root, tmp_path / "data" / "LibriSpeech")
    path = prepare_librispeech(tmp_path / "data", tmp_path / "save", ["a"])
    assert len(manifest.read_manifest(path["a"])) == 6


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        prepare_librispeech(tmp_path / "nowhere", tmp_path / "save", ["a"])


@pytest.mark.parametrize("through_parent", [True, False])
def test_a_missing_split_is_named_and_those_found_listed(
    tmp_path, through_parent
):
    root = make_corpus(
        "LibriSpeech", tmp_path / "data" / "LibriSpeech", ["a", "b"]
    )
    with pytest.raises(DataError, match="lacks c; found: a, b"):
        prepare_librispeech(
            root.parent if through_parent else root,
            tmp_path / "save",
            ["a", "c"],
        )


@pytest.mark.parametrize("name", PREPARE)
def test_an_empty_split_is_named(tmp_path, name):
    (tmp_path / "data" / "a" / "100" / "7").mkdir(parents=True)
    with pytest.raises(DataError, match="data/a is empty.*" + SUFFIX[name]):
        PREPARE[name](tmp_path / "data", tmp_path / "save", ["a"])


@pytest.mark.parametrize("damage", ["text", "empty", "no samples"])
def test_unreadable_files_are_named(tmp_path, count_headers, damage):
    root = make_corpus("LibriTTS", tmp_path / "data", ["a"])
    *_, first, second = sorted(root.rglob("*.wav"))
    for path in [first, second]:
        if damage == "no samples":
            soundfile.write(path, [], 24000)
        else:
            path.write_bytes(b"not audio" if damage == "text" else b"")
    with pytest.raises(DataError) as error:
        prepare_libritts(root, tmp_path / "save", ["a"])
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)
    assert "2 unusable" in str(error.value)
    assert not (tmp_path / "save" / "a.json").exists()
    # Once they are gone, the headers of the others are still known.
    count_headers.count = 0
    first.unlink()
    second.unlink()
    prepare_libritts(root, tmp_path / "save", ["a"])
    assert count_headers.count == 0


def test_an_unreadable_transcript_is_named(tmp_path):
    root = make_corpus("LibriTTS", tmp_path / "data", ["a"], 1, 1)
    (text,) = root.rglob("*.normalized.txt")
    text.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=text.name):
        prepare_libritts(root, tmp_path / "save", ["a"])


def test_two_files_with_one_id_are_named(tmp_path):
    root = make_corpus("LibriTTS", tmp_path / "data", ["a"])
    (wav, *_) = sorted(root.rglob("*.wav"))
    (root / "a" / "999" / "7").mkdir(parents=True)
    (root / "a" / "999" / "7" / wav.name).write_bytes(wav.read_bytes())
    with pytest.raises(DataError, match=f"utterance id {wav.stem}: .*999"):
        prepare_libritts(root, tmp_path / "save", ["a"], num_workers=1)


@pytest.mark.parametrize("where", [".", "save", "LibriSpeech/a"])
def test_the_save_folder_must_lie_outside_the_data_folder(tmp_path, where):
    root = make_corpus("LibriSpeech", tmp_path / "LibriSpeech", ["a"])
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match="lies in the data folder"):
        prepare_librispeech(tmp_path, tmp_path / where, ["a"])
    os.symlink(root, link := tmp_path / "link")
    with pytest.raises(DataError, match="lies in the data folder"):
        prepare_librispeech(root, link / "save", ["a"])
    link.unlink()
    assert snapshot(root) == {
        path: state for path, state in before.items() if root in path.parents
    } | {root: before[root]}


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', "{", "\udcff"])
def test_a_bad_manifest_is_named(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="bad.json"):
        manifest.read_manifest(path)
