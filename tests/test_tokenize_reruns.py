"""`focalcodec tokenize` again on one folder: after damage, changes, a kill."""

import json
import os
import random
import subprocess
import sys
from contextlib import ExitStack

import pytest
from corpora import clip, files_of

from speechbrain_focalcodec.corpus import ray_engine
from speechbrain_focalcodec.corpus.layout import check_shards, read_info
from speechbrain_focalcodec.corpus.lock import run_lock
from speechbrain_focalcodec.corpus.run import tokenize
from speechbrain_focalcodec.data import token_rows
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs.report import Report

KEYS = ("id", "tokens", "num_samples", "speaker", "path")


@pytest.fixture(scope="module")
def model():
    return PretrainedFocalCodec.from_pretrained(
        "tests/parity/offline_50hz", run_opts={"device": "cpu"}
    )


@pytest.fixture
def corpus(tmp_path):
    """Five clips, for two shards; the last one is no audio."""
    for number in range(4):
        clip(tmp_path / "in" / f"{number}.wav", 0.5 + 0.1 * number)
    (tmp_path / "in" / "4.wav").write_text("no audio")
    return tmp_path / "in"


def go(source, out, interface, **options):
    options = {
        "workers": 0,
        "items_per_shard": 3,
        "max_failures": 0.5,
        **options,
    }
    return tokenize(source, out, interface, **options)


def rows_of(folder):
    return [
        {**item, "tokens": item["tokens"].tolist()}
        for item in TokenDataset(folder, KEYS)
    ]


@pytest.mark.parametrize("hashed", [2**28, -1])
def test_flipped_bits_never_give_other_tokens(
    corpus, model, tmp_path, monkeypatch, hashed
):
    """Neither with all hashes compared, nor by the pages' checksums alone."""
    monkeypatch.setattr(token_rows, "_ALWAYS_VERIFIED", hashed)
    out = tmp_path / "out"
    go(corpus, out, model)
    wanted = rows_of(out)
    path = out / read_info(out).shards[0].file
    data = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            rows = rows_of(out)
        except DataError:
            refused += 1
        else:
            assert rows == wanted
    assert refused == 200 if hashed > 0 else refused > 100


def test_failures_do_not_name_descriptors(corpus, model, tmp_path):
    go(corpus, tmp_path / "a", model)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(open(os.devnull))
        go(corpus, tmp_path / "b", model)
    go(corpus, tmp_path / "c", model, workers=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")


class Again(Report):
    """Starts the same run again while it is at work."""

    def __init__(self, again):
        self.again, self.errors = again, []

    def update(self, done, seconds, failures):
        with pytest.raises(DataError, match="another run is at work") as caught:
            self.again()
        self.errors.append(str(caught.value))


def test_a_second_run_is_refused(corpus, model, tmp_path):
    out = tmp_path / "out"
    report = Again(lambda: go(corpus, out, model))
    assert go(corpus, out, model, report=report).rows == 4
    assert f"process {os.getpid()} on" in report.errors[0]
    assert not (out / "work/lock").exists()
    list(check_shards(out, read_info(out), hashes=True))
    assert go(corpus, out, model).rows == 4


def test_ray_and_others_refuse_each_other(corpus, model, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "import_extra", lambda *names: None)
    with (
        run_lock(tmp_path / "out"),
        pytest.raises(DataError, match="another run is at work"),
    ):
        ray_engine.tokenize_with_ray(
            corpus, tmp_path / "out", lambda device: model
        )


def test_a_killed_run_leaves_no_lock(corpus, model, tmp_path):
    out = tmp_path / "out"
    script = (
        "import sys, time\n"
        "from speechbrain_focalcodec.corpus.lock import run_lock\n"
        "with run_lock(sys.argv[1]):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, out], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(DataError, match=f"process {process.pid} on"):
            go(corpus, out, model)
    finally:
        process.kill()
        process.communicate()
    assert (out / "work/lock").exists()
    assert go(corpus, out, model).rows == 4
    assert not (out / "work/lock").exists()


def test_a_finished_run_is_compared_with_its_hashes(corpus, model, tmp_path):
    out = tmp_path / "out"
    go(corpus, out, model)
    wanted = files_of(out)
    path = out / "dataset.json"
    info = json.loads(path.read_text())
    info["shards"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match="00001-of-00002.*--verify"):
        go(corpus, out, model)
    assert go(corpus, out, model, verify=True).rows == 4
    assert files_of(out) == wanted


@pytest.mark.parametrize(
    "key, value",
    [("settings", {}), ("source", {"kind": "folder", "digest": "0" * 64})],
)
def test_a_description_of_another_run_is_replaced(
    corpus, model, tmp_path, key, value
):
    out = tmp_path / "out"
    info = go(corpus, out, model)
    path = out / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert go(corpus, out, model) == info


def test_audio_that_has_changed_is_reported(corpus, model, tmp_path, caplog):
    out = tmp_path / "out"
    go(corpus, out, model)
    go(corpus, out, model)
    assert "another size" not in caplog.text
    clip(corpus / "1.wav", 0.8)
    clip(corpus / "4.wav", 0.8)  # it failed: --retry-failures is for it
    before = files_of(out)
    go(corpus, out, model)
    assert "1 audio files have another size" in caplog.text
    assert "in/1.wav" in caplog.text
    assert "remove data/tokens-00000-of-00002.parquet" in caplog.text
    assert files_of(out) == before
    # What the message says to do.
    (out / "data/tokens-00000-of-00002.parquet").unlink()
    caplog.clear()
    go(corpus, out, model)
    assert "another size" not in caplog.text
    assert rows_of(out)[1]["num_samples"] == 12800
