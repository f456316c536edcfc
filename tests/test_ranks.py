"""Ranks that share a run: torchrun, Slurm, processes, and lost ones."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from corpora import files_of
from make_corpus import make_corpus
from typer.testing import CliRunner

from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus.run import default_workers, tokenize
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs import processes
from speechbrain_focalcodec.jobs.processes import (
    default_processes,
    start_ranks,
)
from speechbrain_focalcodec.jobs.ranks import Rank, find_rank, local_rank

SHARDS = 8
MODEL = "tests/parity/offline_50hz"
FAST = ["--workers", "0", "--device", "cpu", "--shard-size", "1"]

# A rank that is killed when it publishes its second shard.
LOST = """
import os, signal, sys
from speechbrain_focalcodec.corpus.maker import ShardMaker
publish, made = ShardMaker._publish, []
def lose(self, shard):
    made.append(shard)
    if len(made) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return publish(self, shard)
ShardMaker._publish = lose
from speechbrain_focalcodec.cli import app
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return make_corpus("LibriSpeech", folder, ["dev-clean"], 4, 2, 0.3)


@pytest.fixture(scope="module")
def interface():
    return PretrainedFocalCodec.from_pretrained(
        MODEL, run_opts={"device": "cpu"}
    )


def go(corpus, out, interface, **options):
    options = {"items_per_shard": 1, "workers": 0} | options
    return tokenize(corpus, out, interface, **options)


@pytest.fixture(scope="module")
def whole(corpus, interface, tmp_path_factory):
    """Files of the dataset that one process makes."""
    out = tmp_path_factory.mktemp("whole") / "tokens"
    go(corpus, out, interface)
    return files_of(out, ["data", ".", "work"])


def check(out, whole):
    assert files_of(out, ["data", ".", "work"]) == whole


def numbers_of(out):
    return sorted(int(p.name[7:12]) for p in out.glob("data/tokens-*"))


def run(arguments, environ=(), code="from speechbrain_focalcodec.cli import"):
    if code.endswith("import"):
        code += " app; import sys; app(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, "tokenize", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(environ)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def slurm(rank, size):
    """What srun sets."""
    return {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(size)}


def test_shards_belong_to_ranks(corpus, interface, whole, tmp_path):
    out = tmp_path / "tokens"
    assert go(corpus, out, interface, rank=Rank(1, 3)) is None
    assert numbers_of(out) == [1, 4, 7]
    assert not (out / "dataset.json").exists()
    assert go(corpus, out, interface, rank=Rank(0, 3)) is None
    assert numbers_of(out) == [0, 1, 3, 4, 6, 7]
    # The last one writes the index.
    assert go(corpus, out, interface, rank=Rank(2, 3)).rows == SHARDS
    check(out, whole)
    # Once more, there is nothing to do.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    assert go(corpus, out, interface, rank=Rank(1, 3)) is None
    assert go(corpus, out, interface, rank=Rank(0, 3)).rows == SHARDS
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.*")} == before


def test_another_number_of_ranks_finishes_a_run(
    corpus, interface, whole, tmp_path
):
    out = tmp_path / "tokens"
    go(corpus, out, interface, rank=Rank(1, 3))
    go(corpus, out, interface, rank=Rank(0, 2))
    assert go(corpus, out, interface).rows == SHARDS
    check(out, whole)


def test_ranks_at_the_same_time(corpus, interface, whole, tmp_path):
    out, results = tmp_path / "tokens", []

    def work(rank):
        results.append(go(corpus, out, interface, rank=Rank(rank, 3)))

    threads = [threading.Thread(target=work, args=[r]) for r in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    # One of them has written the index.
    assert len(results) == 3
    assert [info.rows for info in results if info] == [SHARDS]
    check(out, whole)


def test_a_rank_makes_its_failures_again(corpus, interface, tmp_path):
    files = tmp_path / "files.txt"
    audio = sorted(corpus.glob("*/*/*/*.flac"))
    missing = [tmp_path / f"{name}.flac" for name in "xyz"]
    files.write_text("\n".join(map(str, [*audio, *missing])))
    out = tmp_path / "tokens"
    options = {"max_failures": 0.5, "items_per_shard": 2}
    assert go(files, out, interface, **options).failures == 3
    for path in missing:
        path.write_bytes(audio[0].read_bytes())
    options["retry_failures"] = True
    # The index of the first still has the other rank's shards.
    go(files, out, interface, **options, rank=Rank(1, 2))
    info = go(files, out, interface, **options, rank=Rank(0, 2))
    assert (info.rows, info.failures) == (len(audio) + 3, 0)
    assert go(files, out, interface, items_per_shard=2).failures == 0


def test_too_many_failures_of_all_ranks(corpus, interface, tmp_path):
    lines = [*corpus.glob("*/*/*/*.flac"), *(f"no{i}.wav" for i in range(8))]
    files = tmp_path / "files.txt"
    files.write_text("\n".join(map(str, lines)))
    out, options = tmp_path / "out", {"max_failures": 0.3}
    # Each has 4 of 16, and both have more than 30 %.
    assert go(files, out, interface, rank=Rank(0, 2), **options) is None
    with pytest.raises(DataError, match="of 16 items failed, more than --max"):
        go(files, out, interface, rank=Rank(1, 2), **options)
    assert not (out / "dataset.json").exists()


@pytest.mark.parametrize("what", ["model", "settings"])
def test_ranks_must_have_the_same_model(corpus, interface, tmp_path, what):
    name = "causal_50hz" if what == "model" else "offline_50hz"
    other = PretrainedFocalCodec.from_pretrained(
        f"tests/parity/{name}", run_opts={"device": "cpu"}
    )
    other.window = 60.0 if what == "model" else 30.0
    go(corpus, tmp_path / "tokens", interface, rank=Rank(0, 2))
    with pytest.raises(DataError, match=f"holds tokens of .*{what}"):
        go(corpus, tmp_path / "tokens", other, rank=Rank(1, 2))


def test_torchrun(corpus, whole, tmp_path):
    out = tmp_path / "tokens"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        + ["--nproc-per-node", "3", "-m", "speechbrain_focalcodec.cli"]
        + ["tokenize", str(corpus), str(out), "--model", MODEL, *FAST],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    check(out, whole)
    assert done.stdout.count("8 utterances") == 1


def test_a_lost_rank_of_slurm(corpus, whole, tmp_path):
    out = tmp_path / "tokens"
    arguments = [corpus, out, "--model", MODEL, *FAST]
    lost = run(arguments, slurm(1, 2), LOST)
    _, errors = lost.communicate(timeout=200)
    assert lost.returncode == -signal.SIGKILL, errors
    other = run(arguments, slurm(0, 2))
    _, errors = other.communicate(timeout=200)
    assert other.returncode == 0
    assert "3 of 8 shards are left to other ranks" in errors
    assert numbers_of(out) == [0, 1, 2, 4, 6]
    assert not (out / "dataset.json").exists()
    again = run(arguments, slurm(1, 2))
    output, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert "8 utterances" in output
    check(out, whole)


def test_processes_of_one_machine(corpus, whole, tmp_path):
    out = tmp_path / "tokens"
    arguments = [corpus, out, "--model", MODEL, *FAST, "--processes", "2"]
    done = run(arguments)
    output, errors = done.communicate(timeout=200)
    assert done.returncode == 0, errors
    assert output.count("8 utterances") == 1
    check(out, whole)
    # Again, and what is wrong is printed once.
    (out / "work" / "plan.json").write_text("{")
    wrong = run(arguments)
    _, errors = wrong.communicate(timeout=200)
    assert wrong.returncode == 1
    assert len(errors.splitlines()) == 1 and "is damaged" in errors


def lose_process(rank, counts):
    """What a rank may come to."""
    counts.add(items=rank.rank, seconds=0.5)
    if rank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank.rank == 2:
        raise DataError("disk full")
    return 0


def wait_for_ever(rank, counts):
    counts.add(items=1)
    time.sleep(300)
    return 0


def test_lost_processes_are_reported(corpus, interface, whole, tmp_path):
    out = tmp_path / "tokens"
    with start_ranks(lose_process, 4) as others:
        with pytest.raises(DataError) as caught:
            go(
                *(corpus, out, interface),
                rank=Rank(0, 4),
                others=others,
                counts=others.counts,
            )
    assert str(caught.value) == (
        "6 of 8 shards are left: rank 1 ended with code -9; disk full; run the "
        "same command again: finished shards are kept"
    )
    # Its own items, and those that the other ranks have counted.
    assert others.counts.totals()[0] == 2 + 1 + 2 + 3
    assert numbers_of(out) == [0, 4]
    go(corpus, out, interface)
    check(out, whole)


def test_ranks_end_with_the_block():
    with start_ranks(wait_for_ever, 3) as others:
        while others.counts.totals()[0] < 2:
            time.sleep(0.01)
    assert others.join(lambda: None) == [
        f"rank {rank} ended with code -15" for rank in (1, 2)
    ]


def test_the_environment_gives_the_rank():
    assert find_rank({"WORLD_SIZE": "1", "RANK": "0"}) == (0, 1)
    assert find_rank({"WORLD_SIZE": "8", "RANK": "3"}) == (3, 8)
    assert find_rank({**slurm(3, 8)}) == (3, 8)
    # torchrun within a step of Slurm.
    assert find_rank({**slurm(1, 2), "WORLD_SIZE": "8", "RANK": "3"}) == (3, 8)
    # The script of a job is no step of several tasks.
    assert find_rank({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == (0, 1)
    for environ in (
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        slurm(-1, 2),
    ):
        with pytest.raises(DataError, match="must be a rank and the number"):
            find_rank(environ)


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, (0, 1)),
        ({"LOCAL_RANK": "2", "SLURM_LOCALID": "5"}, (2, 3)),
        ({"SLURM_LOCALID": "5"}, (5, 6)),
        ({"LOCAL_RANK": ""}, (0, 1)),
        (
            {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3"},
            (1, 4),
        ),
    ],
)
def test_local_rank(environ, place):
    assert local_rank(environ) == place


@pytest.mark.parametrize(
    ("local", "device"), [("1", "cuda:1"), ("6", "cuda:2"), (None, "cuda:0")]
)
def test_each_process_has_a_gpu_of_its_own(
    corpus, tmp_path, monkeypatch, local, device
):
    asked = []

    def load(model, device, *args):
        asked.append(device)
        raise DataError("seen enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("speechbrain_focalcodec.cli.model.load_model", load)
    if local is not None:
        monkeypatch.setenv("LOCAL_RANK", local)
    CliRunner().invoke(
        app,
        ["tokenize", str(corpus), str(tmp_path / "out"), "--processes", "1"],
    )
    assert asked == [device]


def test_readers_are_shared_by_a_machines_processes(monkeypatch):
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda pid: range(12), raising=False
    )
    assert default_workers("cuda") == 8
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers("cuda:3") == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert default_workers("cuda") == 1


def test_default_processes(monkeypatch):
    for name in ("RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "cores", lambda: 16)
    assert default_processes("cpu") == 4
    assert default_processes("cuda:1") == 1
    monkeypatch.setattr(processes, "cores", lambda: 2)
    monkeypatch.setattr(processes, "_GPUS", ())
    assert default_processes(None) == 2
    monkeypatch.setenv("RANK", "0")
    assert default_processes("cpu") == 1
