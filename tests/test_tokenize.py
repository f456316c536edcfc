"""`focalcodec tokenize`: what is in the dataset, and what is refused."""

import json
import os
import shutil
import signal
import sys
import tracemalloc
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from corpora import bad_files, clip, files_of, read_or_die, rows_of
from hypothesis import given
from hypothesis import strategies as st
from make_corpus import make_corpus
from typer.testing import CliRunner

from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus import maker, run
from speechbrain_focalcodec.corpus.layout import (
    check_shards,
    read_info,
    sha256_of,
)
from speechbrain_focalcodec.corpus.run import tokenize
from speechbrain_focalcodec.corpus.sources import open_source
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs import loading
from speechbrain_focalcodec.jobs.audio import AudioJob
from speechbrain_focalcodec.jobs.batching import plan_batches
from speechbrain_focalcodec.jobs.loading import Loader
from speechbrain_focalcodec.jobs.report import ProgressBar, Report

MODEL = "tests/parity/offline_50hz"


def load(name="offline_50hz"):
    return PretrainedFocalCodec.from_pretrained(
        f"tests/parity/{name}", run_opts={"device": "cpu"}
    )


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture
def small(tmp_path):
    """Ten clips, for three shards of at most four."""
    for number in range(10):
        clip(tmp_path / "in" / f"{number}.wav", 0.5 + 0.1 * number)
    return tmp_path / "in"


def go(source, out, interface, **options):
    options = {"workers": 0, "items_per_shard": 4} | options
    return tokenize(source, out, interface, **options)


def command(*args):
    args = [*map(str, args), "--model", MODEL, "--device", "cpu"]
    return CliRunner().invoke(app, ["tokenize", *args, "--processes", "1"])


def times(out):
    return {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file()
    }


# What is in it


def test_tokens_are_those_of_one_file_at_a_time(tmp_path, model):
    source = tmp_path / "in"
    formats = ["wav", "flac", "ogg", "mp3"]
    number = 0
    for rate in (8000, 16000, 44100):
        for channels in (1, 2):
            for seconds in (0.04, 0.7, 1.9):
                name = f"{number % 3}/{rate}_{channels}_{seconds}"
                suffix = formats[number % 4 if seconds > 0.5 else 0]
                clip(source / f"{name}.{suffix}", seconds, rate, channels)
                number += 1
    info = go(source, tmp_path / "out", model, batch_duration=4.0)
    table = rows_of(tmp_path / "out")
    ids = table["id"].to_pylist()
    assert ids == sorted(ids)
    assert len(ids) == info.rows == info.items == 18
    for row in table.to_pylist():
        path = source / row["path"]
        assert row["id"] == str(Path(row["path"]).with_suffix(""))
        assert row["tokens"] == model.encode_file(path).tolist()
        assert row["num_tokens"] == len(row["tokens"])
        rate = int(path.name.split("_")[0])
        assert row["sample_rate"] == rate
        assert row["duration"] == row["num_samples"] / rate
        sig, _ = read_audio(path, rate)
        assert row["num_samples"] == len(sig)


def test_the_command(tmp_path, small):
    out = tmp_path / "out"
    result = command(small, out, "--shard-size", 4, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "10 utterances" in result.output and "0 failed" in result.output
    info = read_info(out)
    names = [shard.file for shard in info.shards]
    assert names == [f"data/tokens-0000{i}-of-00003.parquet" for i in range(3)]
    assert len(list(check_shards(out, info, hashes=True))) == 3
    table = rows_of(out)
    assert info.items == info.rows == len(table)
    assert info.tokens == sum(map(len, table["tokens"].to_pylist()))
    assert info.duration == pytest.approx(sum(table["duration"].to_pylist()))
    assert info.columns == table.column_names
    assert [shard.rows for shard in info.shards] == [4, 4, 2]
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    assert info.model.fingerprint == load().fingerprint
    assert pq.read_table(out / "failures.parquet").num_rows == 0
    # Again: nothing is done, without any process.
    before = times(out)
    result = command(small, out)
    assert "nothing was left to do" in result.output
    assert times(out) == before


def test_workers_and_threads_give_the_same_bytes(tmp_path, small, model):
    go(small, tmp_path / "1", model, workers=0)
    go(small, tmp_path / "2", model, workers=2)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_readers(tmp_path, small, model, monkeypatch):
    out = tmp_path / "out"
    (small / "bad.wav").touch()
    go(small, out, model, max_failures=0.2)
    expected = rows_of(out).to_pylist()
    pattern = str(out / "data" / "*.parquet")
    read = pyarrow.dataset.dataset(out / "data").to_table().to_pylist()
    assert read == expected
    assert polars.read_parquet(pattern).to_dicts() == expected
    found = duckdb.sql(f"select * from '{pattern}' order by id")
    rows = [
        dict(zip(found.columns, row, strict=True)) for row in found.fetchall()
    ]
    assert rows == expected
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import datasets

    cache = str(tmp_path / "cache")
    for options in (
        {"path": "parquet", "data_files": pattern},
        {"path": str(out)},
    ):
        loaded = datasets.load_dataset(
            **options, split="train", cache_dir=cache
        )
        assert loaded.to_list() == expected


def test_long_files_are_read_window_by_window(tmp_path, monkeypatch):
    interface = load()
    interface.window, interface.context = 1.0, 0.2
    source = tmp_path / "in"
    clip(source / "long.flac", 4.3, 44100, 2)
    clip(source / "short.wav", 0.9)
    whole = maker.read_sig
    monkeypatch.setattr(
        maker, "read_sig", lambda job, rate: pytest.fail("read as a whole")
    )
    go(source, tmp_path / "out", interface)
    long, short = rows_of(tmp_path / "out").to_pylist()
    for row in (long, short):
        toks = interface.encode_file(source / row["path"])
        assert row["tokens"] == toks.tolist()
    # A part of a file that is longer than a window is cut too.
    monkeypatch.setattr(maker, "read_sig", whole)
    (source / "wav.scp").write_text("r long.flac\n")
    (source / "segments").write_text("s r 1.0 3.5\n")
    go(source, tmp_path / "parts", interface)
    (row,) = rows_of(tmp_path / "parts").to_pylist()
    sig = whole(AudioJob(str(source / "long.flac"), 1.0, 3.5), 16000)
    toks, _ = interface.encode_batch(torch.from_numpy(sig[None]))
    assert row["tokens"] == toks[0].tolist()


def test_kaldi_segments(tmp_path, model):
    sig_path = clip(tmp_path / "rec.wav", 3.0)
    (tmp_path / "wav.scp").write_text("r rec.wav\n")
    (tmp_path / "text").write_text("a hello there\nb again\n")
    (tmp_path / "utt2spk").write_text("a anna\nb otto\n")
    (tmp_path / "segments").write_text(
        "a r 0.5 1.25\nb r 1.25 3.001\nzero r 2 2\nlate r 9 10\n"
    )
    go(tmp_path, tmp_path / "out", model, max_failures=0.5)
    rows = rows_of(tmp_path / "out").to_pylist()
    assert [row["id"] for row in rows] == ["a", "b"]
    assert [row["speaker"] for row in rows] == ["anna", "otto"]
    assert [row["text"] for row in rows] == ["hello there", "again"]
    assert [(row["start"], row["stop"]) for row in rows] == [
        (0.5, 1.25),
        (1.25, 3.001),
    ]
    sig, _ = read_audio(sig_path, 16000)
    for row, part in zip(rows, (sig[8000:20000], sig[20000:]), strict=True):
        toks, _ = model.encode_batch(part[None])
        assert row["tokens"] == toks[0].tolist()
        assert row["num_samples"] == len(part)
    failures = pq.read_table(tmp_path / "out/failures.parquet").to_pylist()
    assert [row["id"] for row in failures] == ["late", "zero"]
    assert "has no part from 2 to 2 s" in failures[1]["reason"]


def test_columns_of_layouts_and_manifests(tmp_path, model):
    corpus = make_corpus("LibriSpeech", tmp_path / "in", ["dev"], 2, 2, 0.5)
    go(corpus, tmp_path / "out", model)
    table = rows_of(tmp_path / "out")
    assert table["speaker"].to_pylist() == ["100", "100", "101", "101"]
    assert table["text"][0].as_py() == "UTTERANCE 1"
    assert table["split"].to_pylist() == ["dev"] * 4
    entries = {
        row["id"]: {
            "wav": f"{{data_root}}/{row['path']}",
            "spk_id": "s",
            "age": n,
        }
        for n, row in enumerate(table.to_pylist())
    }
    (tmp_path / "m.json").write_text(json.dumps(entries))
    info = go(tmp_path / "m.json", tmp_path / "out2", model, data_root=corpus)
    second = rows_of(tmp_path / "out2")
    assert second["age"].to_pylist() == [0, 1, 2, 3]
    assert info.columns[-1] == "age"
    assert second["tokens"] == table["tokens"]


@pytest.mark.parametrize(
    "name, splits",
    [
        ("LibriSpeech", ["dev-clean", "train-clean-5"]),
        ("LibriTTS", ["test-other", "train-clean-100"]),
        ("AN4", ["an4_clstk", "an4test_clstk"]),
    ],
)
def test_layouts_tell_the_split(tmp_path, name, splits):
    corpus = make_corpus(name, tmp_path / "in", splits, 1, 1, 0.1)
    for split in splits:
        [folder] = corpus.rglob(split)
        [item] = open_source(folder)
        assert item.extra == {"split": split}
        # A folder that is called otherwise tells nothing.
        folder.rename(folder.with_name(f"my-{split}"))
    assert [item.extra for item in open_source(corpus)] == [{}, {}]


# Failures


def test_bad_files_are_failures(tmp_path, small, model):
    reasons = bad_files(small)
    names = [f"{number}.wav" for number in range(10)]
    names += [path.name for path in small.iterdir() if path.stem in reasons]
    names += ["missing.wav", "a" * 300 + ".wav"]
    (small / "list.txt").write_text("\n".join(names))
    reasons |= {"missing": "no such file", "a" * 300: ""}
    out = tmp_path / "out"
    info = go(small / "list.txt", out, model, max_failures=1.0)
    assert (info.rows, info.failures) == (10, len(reasons))
    assert len(rows_of(out)) == 10
    failures = pq.read_table(out / "failures.parquet").to_pylist()
    assert [row["id"] for row in failures] == sorted(reasons)
    for row in failures:
        assert row["path"] in names
        assert row["path"] in row["reason"]
        assert reasons[row["id"]] in row["reason"]
        assert "\n" not in row["reason"]


def test_too_many_failures_stop_the_run(tmp_path, small, model):
    (small / "8.wav").write_text("broken")
    (small / "9.wav").write_text("broken")
    out = tmp_path / "out"
    with pytest.raises(DataError, match="2 of 10 .*--max-failures 0.1 ") as e:
        go(small, out, model, max_failures=0.1)
    assert "--retry-failures" in str(e.value)
    failures = pq.read_table(out / "failures.parquet")
    assert failures["id"].to_pylist() == ["8", "9"]
    assert not (out / "dataset.json").exists()
    with pytest.raises(DataError, match="is not complete"):
        read_info(out)
    assert go(small, out, model, max_failures=0.2).failures == 2
    # Below what there is now.
    assert go(small, out, model, max_failures=0.0).failures == 2


def test_mended_files_are_made_with_retry_failures(tmp_path, small, model):
    out, whole = tmp_path / "out", tmp_path / "whole"
    go(small, whole, model)
    good = (small / "5.wav").read_bytes()
    (small / "5.wav").write_bytes(good[:100])
    go(small, out, model, max_failures=0.1)
    (small / "5.wav").write_bytes(good)
    before = times(out / "data")
    assert go(small, out, model).failures == 1
    assert times(out / "data") == before
    assert go(small, out, model, retry_failures=True).failures == 0
    after = times(out / "data")
    changed = [path.name for path in before if before[path] != after[path]]
    assert changed == ["tokens-00001-of-00003.parquet"]
    assert files_of(out) == files_of(whole)


def test_a_dataset_of_failures_only(tmp_path, model):
    for name in "abcde":
        clip(tmp_path / "in" / f"{name}.wav", 0.5)
    for name in "abcd":  # a shard without a row
        (tmp_path / "in" / f"{name}.wav").write_text("broken")
    out = tmp_path / "out"
    info = go(tmp_path / "in", out, model, max_failures=1)
    assert [shard.rows for shard in info.shards] == [0, 1]
    assert rows_of(out)["id"].to_pylist() == ["e"]
    pattern = str(out / "data" / "*.parquet")
    assert len(polars.read_parquet(pattern)) == 1


def test_a_file_that_changes_under_way_is_a_failure(
    tmp_path, small, model, monkeypatch
):
    read = loading.read_sig

    def other(job, sample_rate):
        sig = read(job, sample_rate)
        return sig[:-1] if job.path.endswith("/3.wav") else sig

    monkeypatch.setattr(loading, "read_sig", other)
    info = go(small, tmp_path / "out", model, max_failures=0.1)
    assert info.failures == 1
    (row,) = pq.read_table(tmp_path / "out/failures.parquet").to_pylist()
    assert row["id"] == "3" and "another length" in row["reason"]


def test_a_signal_waits_while_a_process_starts(monkeypatch):
    # A pool that is cut off there would not know of the process.
    class Pool:
        started = False

        def submit(self, *work):
            signal.raise_signal(signal.SIGTERM)
            self.started = True

        def shutdown(self, **options):
            pass

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with Loader(16000, workers=0) as loader:
            monkeypatch.setattr(loader, "_pool", Pool())
            with pytest.raises(KeyboardInterrupt):
                loader.submit(print, [])
            assert loader._pool.started
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_dies_costs_one_item():
    jobs = [AudioJob(name) for name in ("a", "die", "b", "raise", "c")]
    with Loader(16000, workers=2) as loader:
        pendings = [
            loading.Pending(loader, read_or_die, [jobs]),
            loading.Pending(loader, read_or_die, [[AudioJob("d")]]),
        ]
        first, second = (pending.result() for pending in pendings)
        # It goes on with new processes.
        more = loading.Pending(loader, read_or_die, [[AudioJob("e")]])
        assert more.result() == ["E"]
        # A signal to all processes of a run is for the command alone.
        jobs = [AudioJob("signal"), AudioJob("f")]
        last = loading.Pending(loader, read_or_die, [jobs])
        assert last.result() == ["SIGNAL", "F"]
    assert (first[0], first[2], first[4], second) == ("A", "B", "C", ["D"])
    assert first[1] == f"die: {loading.CRASHED}"
    assert "MemoryError: too much" in first[3]


# Refusals and damage


def refused(source, out, interface, match, **options):
    before = times(out) if out.is_dir() else None
    with pytest.raises(DataError, match=match) as caught:
        go(source, out, interface, **options)
    assert (times(out) if out.is_dir() else None) == before
    return str(caught.value)


def test_another_run_is_refused(tmp_path, small, model):
    out = tmp_path / "out"
    go(small, out, model)
    other = load("offline_25hz")
    message = refused(small, out, other, "another model")
    assert other.codec.name in message and model.codec.name in message
    for name, value in (("window", 30.0), ("context", 1.0)):
        changed = load()
        setattr(changed, name, value)
        refused(small, out, changed, f"settings.*{name}': {value}")
    faster = PretrainedFocalCodec.from_pretrained(
        MODEL, run_opts={"device": "cpu"}, precision="bf16"
    )
    refused(small, out, faster, "precision': 'bf16'")
    refused(small, out, model, "shards of 4 items, not 5", items_per_shard=5)
    clip(small / "10.wav", 0.5)
    refused(small, out, model, "1 added, 0 removed.*'10'")
    (small / "10.wav").rename(small / "0.flac")
    (small / "0.wav").unlink()
    refused(small, out, model, "1 changed; first: '0'")
    (small / "0.flac").unlink()
    refused(small, out, model, "1 removed")
    # The work folder is not needed for it.
    shutil.rmtree(out / "work")
    refused(small, out, model, "is not the corpus")
    assert not (out / "work").exists()


def test_other_folders_are_refused(tmp_path, small, model):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    refused(small, out, model, "out: holds other files")
    refused(small, out / "thesis.tex", model, "is a file")
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "README.md").touch()
    (project / "data" / "a.csv").touch()
    refused(small, project, model, "holds other files")
    refused(small, small, model, "holds other files")
    refused(tmp_path / "gone", tmp_path / "new", model, "gone: no such file")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", tmp_path / "new", model, "has no audio files")
    assert not (tmp_path / "new").exists()
    result = command(tmp_path / "gone", tmp_path / "new")
    assert result.exit_code == 2 and "gone" in result.output


def test_the_output_may_be_in_the_source(tmp_path, small, model):
    out = small / "tokens"
    assert go(small, out, model).rows == 10
    before = times(out)
    assert go(small, out, model).rows == 10
    assert times(out) == before


def test_the_corpus_may_move(tmp_path, small, model):
    out = tmp_path / "out"
    go(small, out, model)
    before = times(out / "data")
    small.rename(tmp_path / "moved")
    go(tmp_path / "moved", out, model)
    assert times(out / "data") == before
    next(out.glob("data/*1-of*")).unlink()
    assert go(tmp_path / "moved", out, model).rows == 10


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    "name",
    [
        "data/tokens-00001-of-00003.parquet",
        "dataset.json",
        "failures.parquet",
        "README.md",
        "work/items.parquet",
        "work/plan.json",
    ],
)
@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_what_is_damaged_is_made_again(tmp_path, small, model, name, damage):
    out = tmp_path / "out"
    go(small, out, model)
    before = files_of(out, ["data", ".", "work"])
    kept = times(out / "data")
    damage(out / name)
    if damage is cut and name == "work/plan.json":
        # Who knows what it was: told, and what is told helps.
        refused(small, out, model, "plan.json: is damaged; remove it and run")
        (out / name).unlink()
    go(small, out, model)
    if damage is cut and name == "README.md":
        return  # nothing but words
    assert files_of(out, ["data", ".", "work"]) == before
    after = times(out / "data")
    changed = {path for path in kept if kept[path] != after.get(path)}
    assert changed <= {out / name}


def test_a_lost_plan_of_an_unfinished_run(tmp_path, small, model):
    out = tmp_path / "out"
    go(small, out, model)
    before = times(out / "data")
    for name in ("dataset.json", "work/plan.json", "work/items.parquet"):
        (out / name).unlink()
    other = load("offline_25hz")
    refused(small, out, other, "of another run .*is lost")
    refused(small, out, model, "of another run", items_per_shard=5)
    assert go(small, out, model).rows == 10
    assert times(out / "data") == before


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_verify_finds_flipped_bits(tmp_path, small, model):
    out = tmp_path / "out"
    go(small, out, model)
    before = files_of(out)
    shard = out / "data/tokens-00002-of-00003.parquet"
    flip(shard, 200)
    with pytest.raises(DataError, match="00002-of-00003.parquet: is not"):
        list(check_shards(out, read_info(out), hashes=True))
    result = command(small, out, "--verify")
    assert result.exit_code == 0, result.output
    assert files_of(out) == before
    result = command(small, out, "--verify")
    assert "all shards are as they were made" in result.output
    # Without dataset.json its pages tell: no hash is made of damage.
    (out / "dataset.json").unlink()
    flip(shard, 200)
    with pytest.raises(DataError, match="00002-of.* damaged; .*--verify"):
        go(small, out, model)
    go(small, out, model, verify=True)
    assert files_of(out) == before


def test_foreign_files_among_the_shards(tmp_path, small, model):
    out = tmp_path / "out"
    go(small, out, model)
    (out / "dataset.json").unlink()
    shutil.copy(
        out / "data/tokens-00001-of-00003.parquet",
        out / "data/tokens-00001-of-00002.parquet",
    )
    with pytest.raises(DataError, match="00001-of-00002.* do not belong"):
        go(small, out, model)


@pytest.mark.parametrize(
    "options",
    [
        {"max_failures": 1.1},
        {"batch_duration": 0.0},
        {"workers": -1},
        {"items_per_shard": 0},
    ],
)
def test_arguments_are_checked(tmp_path, small, model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        go(small, tmp_path / "out", model, **options)
    assert not (tmp_path / "out").exists()


# Batches


@given(st.lists(st.integers(1, 2000), max_size=60), st.integers(1, 5000))
def test_batches(lengths, most):
    batches = plan_batches(lengths, most)
    assert sorted(i for batch in batches for i in batch) == list(
        range(len(lengths))
    )
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= most
    assert plan_batches(lengths, most) == batches
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_little_is_padded():
    lengths = np.random.default_rng(0).integers(16000, 320000, 2000).tolist()
    batches = plan_batches(lengths, 20 * 16000)
    padded = sum(max(lengths[i] for i in b) * len(b) for b in batches)
    assert padded / sum(lengths) < 1.02


class Fake:
    """Stands for a codec: tokens that tell the length; memory that ends."""

    def __init__(self, codec, most):
        self.codec, self.most, self.shapes = codec, most, []

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def encode(self, sig, lengths, window=None):
        self.shapes.append(tuple(sig.shape))
        if len(sig) > self.most:
            raise torch.OutOfMemoryError("full")
        toks = lengths[:, None].expand(-1, 3) // 320 % 8192
        return toks, torch.full((len(sig),), 3)


@pytest.fixture
def fake(monkeypatch):
    def make(most):
        interface = load()
        codec = Fake(interface.codec, most)
        monkeypatch.setattr(
            PretrainedFocalCodec, "codec", property(lambda self: codec)
        )
        return interface, codec

    return make


def test_batches_that_do_not_fit_are_halved(tmp_path, small, fake):
    interface, codec = fake(most=2)
    out = tmp_path / "out"
    info = go(small, out, interface, items_per_shard=10)
    assert info.rows == 10
    assert codec.shapes[0][0] == 10
    assert {shape[0] for shape in codec.shapes[-4:]} <= {1, 2, 3}
    for number, row in enumerate(rows_of(out).to_pylist()):
        assert row["tokens"] == [int((0.5 + 0.1 * number) * 50 + 1e-6)] * 3
    codec.most = 0
    with pytest.raises(DataError, match="memory does not hold the 0.8 s"):
        go(small, tmp_path / "out2", interface)


def test_few_waveforms_are_in_memory(tmp_path, fake, monkeypatch):
    interface, codec = fake(most=100)
    paths = [clip(tmp_path / f"{i}.wav", 1.0 + i / 50) for i in range(5)]
    lines = [f"{n}\t{paths[n % 5]}" for n in range(1000)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    tracemalloc.start()
    try:
        info = go(
            tmp_path / "list.txt",
            tmp_path / "out",
            interface,
            items_per_shard=1000,
            batch_duration=10.0,
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert info.rows == 1000
    # All would be 66 MB; 4 batches of 10 s in flight are 2.6 MB.
    assert peak < 12e6
    for batch, samples in codec.shapes:
        assert batch * samples <= 160000


def test_memory_is_asked_for_by_batches(monkeypatch):
    asked = []

    def begin():
        for number in range(50):
            asked.append(number)
            yield number

    for number in loading.read_ahead(begin(), 3):
        assert len(asked) - number <= 4
    assert len(asked) == 50


# Telling


def test_the_progress_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = ProgressBar()
    bar.begin(total=10, done=4)
    bar._since -= 36
    bar.update(done=2, seconds=7200.0, failures=1)
    bar._bar.refresh()
    line = capsys.readouterr().err.split("\r")[-1]
    bar.end()
    for part in ("6/10", "60%", "2.00 h", "200x real time", "1 failed", "<"):
        assert part in line
    assert "factor 0.0050" in line


def test_lines_where_there_is_no_terminal(capsys):
    bar = ProgressBar(pause=30)
    bar.begin(total=10, done=4)
    bar.update(done=1, seconds=3600.0, failures=0)
    assert capsys.readouterr().err == ""
    bar._since -= 36
    bar._printed -= 36
    bar.update(done=2, seconds=7200.0, failures=1)
    (line,) = capsys.readouterr().err.splitlines()
    bar.end()
    assert line.startswith("6 of 10 files, 2.00 h, ")
    assert "1 failed, 01:12 left" in line


def test_a_report_is_told_of_everything(tmp_path, small, model):
    calls = []

    class Told(Report):
        def begin(self, total, done):
            calls.append((total, done))

        def update(self, done, seconds, failures):
            calls.append((done, round(seconds, 2), failures))

        def end(self):
            calls.append("end")

    (small / "9.wav").write_text("broken")
    go(small, tmp_path / "out", model, max_failures=0.1, report=Told())
    assert calls[0] == (10, 0) and calls[-1] == "end"
    assert calls[-2] == (10, 8.1, 1)
    next((tmp_path / "out").glob("data/*0-of*")).unlink()
    calls.clear()
    go(small, tmp_path / "out", model, max_failures=0.1, report=Told())
    assert calls[0] == (10, 6) and calls[-2][0] == 4


def test_default_workers_leave_room(monkeypatch):
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda pid: range(16), raising=False
    )
    assert run.default_workers("cuda") == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert run.default_workers("cuda") == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert run.default_workers("cuda") == 1


def test_hashes_are_those_of_the_files(tmp_path, small, model):
    info = go(small, tmp_path / "out", model)
    for shard in info.shards:
        path = tmp_path / "out" / shard.file
        assert sha256_of(path) == shard.sha256
        assert path.stat().st_size == shard.bytes
