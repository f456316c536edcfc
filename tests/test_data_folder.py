"""Data preparation of Libri-Light and of any folder of audio."""

import os

import numpy as np
import pytest
import soundfile
from make_corpus import make_corpus

from speechbrain_focalcodec.data import scan
from speechbrain_focalcodec.data.command import run_preparation
from speechbrain_focalcodec.data.corpora import (
    prepare_folder,
    prepare_librilight,
    prepare_librispeech,
)
from speechbrain_focalcodec.data.manifest import read_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return make_corpus("Folder", tmp_path / "data", ["a", "b"], duration=0.1)


def skipped(save, split="all"):
    lines = (save / f"{split}.skipped.tsv").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


@pytest.mark.parametrize("through_parent", [True, False])
def test_librilight(tmp_path, through_parent):
    root = make_corpus(
        "LibriLight", tmp_path / "librilight", ["small", "medium"], duration=0.1
    )
    *_, alone, audio = sorted(root.glob("small/*/*/*.flac"))
    alone.with_suffix(".json").unlink()
    audio.with_suffix(".json").write_text('{"snr": null}')
    data_folder = tmp_path if through_parent else root
    paths = prepare_librilight(
        data_folder, tmp_path.parent / "save", ["small", "medium"]
    )
    entries = read_manifest(paths["small"])
    assert list(entries) == [
        f"small/{speaker}/book_{speaker}_64kb_mp3/0{i}_chapter_64kb"
        for speaker in (100, 101, 102)
        for i in range(2)
    ]
    for i, (utt_id, entry) in enumerate(entries.items(), 1):
        path = root / f"{utt_id}.flac"
        assert entry["wav"].format(data_root=data_folder) == str(path)
        assert entry["num_samples"] == soundfile.info(path).frames
        assert entry["spk_id"] == utt_id.split("/")[1]
        about = {"snr": i + 0.5, "speech": 0.625} if i < 5 else {}
        assert {k: entry[k] for k in entry.keys() & {"snr", "speech"}} == about
    # Facts that some lack do no harm: those with and those without are read.
    dataset = make_dataset(paths["small"], data_folder, 16000)
    assert [len(item["sig"]) for item in dataset] == [
        entry["num_samples"] for entry in entries.values()
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"snr": "loud"}', '{"voice_activity": [1, 2]}']
)
def test_a_damaged_sidecar_is_named(tmp_path, text):
    root = make_corpus("LibriLight", tmp_path / "data", ["small"], 1, 2)
    first, _ = sorted(root.rglob("*.json"))
    first.write_text(text)
    with pytest.raises(DataError, match=first.name):
        prepare_librilight(root, tmp_path / "save")
    save = tmp_path / "save"
    path = prepare_librilight(root, save, max_failures=0.5)["small"]
    assert len(read_manifest(path)) == 1
    assert first.name in str(skipped(save, "small"))


def test_any_folder(folder, tmp_path):
    soundfile.write(folder / "a" / "none.aiff", np.zeros((100, 2)), 8000)
    soundfile.write(folder / "top.wav", np.zeros(100), 8000)
    (folder / "a" / "notes.txt").write_text("no audio")
    (folder / "a" / ".hidden.wav").write_bytes(b"no audio")
    (folder / "{a}").mkdir()
    soundfile.write(folder / "{a}" / "{b}.v1.wav", np.zeros(100), 8000)
    os.symlink(folder / "a", folder / "link")
    paths = prepare_folder(folder, tmp_path / "save", ["a", "all"])
    entries = {name: read_manifest(path) for name, path in paths.items()}
    assert list(entries["a"]) == [
        "a/100/more/take 1",
        "a/100/take 0",
        "a/101/more/take 1",
        "a/101/take 0",
        "a/102/more/take 1",
        "a/102/take 0",
        "a/none",
    ]
    speakers = {key: e.get("spk_id") for key, e in entries["a"].items()}
    assert speakers.pop("a/none") is None
    assert all(name.split("/")[1] == spk for name, spk in speakers.items())
    everything = entries["all"]
    assert everything.keys() >= entries["a"].keys()
    assert len(everything) == 7 + 6 + 2
    assert everything["a/none"]["spk_id"] == "a"
    assert "spk_id" not in everything["top"]
    for key in ["{a}/{b}.v1", "top", "a/102/take 0"]:
        entry = everything[key]
        path = entry["wav"].format(data_root=folder)
        info = soundfile.info(path)
        assert (entry["num_samples"], entry["sample_rate"]) == (
            info.frames,
            info.samplerate,
        )
    # All rates, formats and channels become one; speakers may be missing.
    dataset = make_dataset(paths["all"], folder, 16000)
    assert {item["sig"].ndim for item in dataset} == {1}
    unknown = prepare_folder(folder, tmp_path / "2", speakers=False)["all"]
    assert not any("spk_id" in e for e in read_manifest(unknown).values())
    wavs = prepare_folder(folder, tmp_path / "3", ["b"], suffixes=[".WAV"])
    assert len(read_manifest(wavs["b"])) == 2


def test_bad_files_are_skipped_and_listed_up_to_a_share(folder, tmp_path):
    (folder / "a" / "empty.wav").touch()
    (folder / "a" / "text\tfile.ogg").write_text("no audio")
    cut = folder / "b" / "cut.wav"
    soundfile.write(cut, np.zeros(1000), 16000)
    cut.write_bytes(cut.read_bytes()[:-100])
    soundfile.write(folder / "b" / "200" / "take 0.aiff", np.zeros(100), 8000)
    save = tmp_path / "save"
    with pytest.raises(DataError, match=r"4 unusable .*=0.1 allows 2") as error:
        prepare_folder(folder, save, max_failures=0.1)
    assert "empty.wav" in str(error.value) and "skipped.tsv" in str(error.value)
    assert not (save / "all.json").exists()
    path = prepare_folder(folder, save, max_failures=0.25)["all"]
    assert len(read_manifest(path)) == 12
    reasons = skipped(save)
    assert reasons.keys() == {
        "a/empty.wav",
        r"'a/text\tfile.ogg'",
        "b/200/take 0.ogg",
        "b/cut.wav",
    }
    assert "take 0.aiff and" in reasons["b/200/take 0.ogg"]
    # Two of one name: which one is taken is always the same.
    entry = read_manifest(path)["b/200/take 0"]
    assert entry["num_samples"] == 100
    for file in ["a/empty.wav", "a/text\tfile.ogg", "b/200/take 0.aiff"]:
        (folder / file).unlink()
    cut.unlink()
    prepare_folder(folder, save, max_failures=0.0)
    assert not (save / "all.skipped.tsv").exists()


def test_reading_stops_when_too_many_files_are_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "PART_FILES", 1)
    (tmp_path / "data").mkdir()
    for i in range(100):
        (tmp_path / "data" / f"{i:03d}.wav").write_text("no audio")
    with pytest.raises(DataError, match="11 unusable .* of 100"):
        prepare_folder(tmp_path / "data", tmp_path / "save", max_failures=0)


def test_a_name_that_is_not_unicode_is_a_bad_file(folder, tmp_path):
    open(os.fsencode(folder / "a") + b"/\xff.wav", "wb").close()
    save = tmp_path / "save"
    paths = prepare_folder(folder, save, ["a"], max_failures=0.5)
    assert len(read_manifest(paths["a"])) == 6
    (why,) = skipped(save, "a").values()
    assert "not valid Unicode" in why


def test_decoding_finds_damage_behind_headers(tmp_path, monkeypatch):
    root = make_corpus("LibriSpeech", tmp_path / "data", ["a"], duration=0.5)
    bad, *_ = sorted(root.rglob("*.flac"))
    content = bytearray(bad.read_bytes())
    content[-2000:-1000] = bytes(1000)
    bad.write_bytes(content)
    save = tmp_path / "save"
    assert len(read_manifest(prepare_librispeech(root, save, ["a"])["a"])) == 6
    with pytest.raises(DataError, match=bad.name):
        prepare_librispeech(root, save, ["a"], decode=True)
    prepare_librispeech(root, save, ["a"], decode=True, max_failures=0.2)
    assert list(skipped(save, "a")) == [f"a/100/7/{bad.name}"]
    # What was decoded is not decoded again.
    read = []
    read_header = scan.read_header
    monkeypatch.setattr(
        scan,
        "read_header",
        lambda *a: (read.append(a[0]), read_header(*a))[1],
    )
    prepare_librispeech(root, save, ["a"], decode=True, max_failures=0.2)
    assert read == [bad]


def test_large_folders_are_read_in_parts(folder, tmp_path, monkeypatch):
    whole = prepare_folder(folder, tmp_path / "whole")["all"]
    monkeypatch.setattr(scan, "PART_FILES", 1)
    parts = prepare_folder(folder, tmp_path / "parts", num_workers=3)["all"]
    assert parts.read_bytes() == whole.read_bytes()


def test_a_folder_without_audio_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="data is empty"):
        prepare_folder(tmp_path / "data", tmp_path / "save")
    with pytest.raises(DataError, match="max_failures must be in 0..1"):
        prepare_folder(tmp_path / "data", tmp_path / "save", max_failures=2)


def test_the_command_line_has_each_corpus_options(folder, tmp_path, capsys):
    (folder / "a" / "empty.wav").touch()
    save = tmp_path / "save"
    arguments = [str(folder), str(save)]
    with pytest.raises(SystemExit, match="error: 1 unusable"):
        run_preparation(prepare_folder, [*arguments, "--max_failures", "0"])
    run_preparation(
        prepare_folder, [*arguments, "--no_speakers", "--max_failures", "0.5"]
    )
    assert capsys.readouterr().out == f"{save / 'all.json'}\n"
    entries = read_manifest(save / "all.json").values()
    assert len(entries) == 12
    assert not any("spk_id" in entry for entry in entries)
    with pytest.raises(SystemExit):
        run_preparation(prepare_librispeech, [*arguments, "--no_speakers"])
    with pytest.raises(SystemExit):
        run_preparation(prepare_librispeech, arguments)
    assert "required: --splits" in capsys.readouterr().err
