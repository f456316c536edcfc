"""Several processes that share a run: torchrun, Slurm, losses on the way."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from make_corpus import make_corpus
from torch.distributed import HashStore
from typer.testing import CliRunner

from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus import run
from speechbrain_focalcodec.corpus.layout import check_shards, read_info
from speechbrain_focalcodec.corpus.run import default_workers, tokenize
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs import group as groups
from speechbrain_focalcodec.jobs.group import (
    Alone,
    StoreGroup,
    check,
    find_group,
    first_host,
    local_place,
    together,
)
from speechbrain_focalcodec.jobs.report import Report

SHARDS = 8
FAST = ["--workers", "0", "--device", "cpu", "--shard-size", "1"]
FAST += ["--processes", "1"]

# Says when a shard is to be written, and waits for a word.
HANGING = """
import sys, time
from pathlib import Path
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus.maker import ShardMaker
here, publish = Path(sys.argv.pop()), ShardMaker._publish
def hang(self, shard):
    here.touch()
    while not here.with_suffix(".go").exists():
        time.sleep(0.05)
    return publish(self, shard)
ShardMaker._publish = hang
app(sys.argv[1:])
"""

# The leader makes nothing before the other has a shard.
LATE = """
import pathlib, sys, time
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus.maker import ShardMaker
path, make = pathlib.Path(sys.argv.pop()), ShardMaker.make
def later(self, *arguments):
    while not path.exists():
        time.sleep(0.05)
    yield from make(self, *arguments)
ShardMaker.make = later
app(["tokenize", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return make_corpus("LibriSpeech", folder, ["dev-clean"], 4, 2, 0.3)


@pytest.fixture(scope="module")
def model():
    return "tests/parity/offline_50hz"


@pytest.fixture(scope="module")
def interface(model):
    return PretrainedFocalCodec.from_pretrained(
        model, run_opts={"device": "cpu"}
    )


@pytest.fixture(scope="module")
def alone(corpus, interface, tmp_path_factory):
    """Return the shards that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "tokens"
    tokenize(corpus, out, interface, items_per_shard=1, workers=0)
    return shards_of(out)


def shards_of(out):
    """Return the content of a dataset's shards, checked."""
    paths = list(check_shards(out, read_info(out), hashes=True))
    return {path.name: path.read_bytes() for path in paths}


def free_port():
    """A port that stays free: the system gives none below 32768 by itself."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as listener:
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                return port


def slurm_environ(rank, port):
    """Return what srun sets, for two tasks."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_PORT": str(port),
    }


def start(rank, port, arguments, hangs=None, late=None):
    command = ["-m", "speechbrain_focalcodec.cli", "tokenize", *arguments]
    if hangs:
        command = ["-c", HANGING, *command[2:], str(hangs)]
    if late:
        command = ["-c", LATE, *arguments, str(late)]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=slurm_environ(rank, port),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_there(process, path):
    end = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def kill_when_there(process, path):
    wait_until_there(process, path)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def share(function, size=2):
    """Call a function in threads that share a store; what came of it."""
    store = HashStore()
    results = [None] * size

    def call(rank):
        try:
            results[rank] = function(StoreGroup(store, rank, size))
        except Exception as error:
            results[rank] = error

    threads = [
        threading.Thread(target=call, args=[rank]) for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    return results


class Counter(Report):
    """Counts what it is told, and keeps the last."""

    begun = updates = 0
    last: tuple = ()

    def begin(self, total, done):
        self.begun += 1

    def update(self, done, seconds, failures):
        self.updates += 1
        self.last = done, seconds, failures
        time.sleep(0.02)  # so that no process is done before others begin


def test_work_is_shared(corpus, interface, alone, tmp_path):
    reports = [Counter(), Counter(), Counter()]

    def work(group):
        return tokenize(
            corpus,
            tmp_path / "tokens",
            interface,
            items_per_shard=1,
            workers=0,
            group=group,
            report=reports[group.rank],
        )

    info, *others = share(work, 3)
    assert info.rows == SHARDS and others == [None, None]
    assert shards_of(tmp_path / "tokens") == alone
    assert [report.begun for report in reports] == [1, 0, 0]
    assert all(report.updates for report in reports)
    # Again: nothing to do, and all are told.
    for report in reports:
        report.updates = 0
    assert share(work, 3) == [info, None, None]
    assert not any(report.updates for report in reports)


def test_torchrun(corpus, model, alone, tmp_path):
    out = tmp_path / "tokens"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        + ["--nproc-per-node", "2", "-m", "speechbrain_focalcodec.cli"]
        + ["tokenize", str(corpus), str(out), "--model", model, *FAST],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert shards_of(out) == alone
    assert done.stdout.count("8 utterances") == 1


def test_a_killed_follower_is_replaced(corpus, model, alone, tmp_path):
    out, port = tmp_path / "tokens", free_port()
    arguments = [corpus, out, "--model", model, *FAST, "--lost-after", "3"]
    follower = start(1, port, arguments, hangs=tmp_path / "hangs")
    leader = start(0, port, arguments, late=tmp_path / "hangs")
    kill_when_there(follower, tmp_path / "hangs")
    stdout, stderr = leader.communicate(timeout=200)
    assert leader.returncode == 0, stderr
    assert "8 utterances" in stdout
    assert shards_of(out) == alone


def test_a_killed_leader_ends_all_and_a_rerun_completes(
    corpus, model, alone, tmp_path
):
    out, port = tmp_path / "tokens", free_port()
    arguments = [corpus, out, "--model", model, *FAST]
    leader = start(0, port, arguments, hangs=tmp_path / "leads")
    follower = start(1, port, arguments, hangs=tmp_path / "follows")
    wait_until_there(follower, tmp_path / "follows")
    kill_when_there(leader, tmp_path / "leads")
    (tmp_path / "follows.go").touch()
    stderr = follower.communicate(timeout=200)[1]
    assert follower.returncode == 1
    assert "error: lost the process that leads this run" in stderr
    assert "run the same command again" in stderr
    assert not (out / "dataset.json").exists()
    # The same port can be had at once.
    assert find_group(slurm_environ(0, port)).add("met", 1) == 1
    again = CliRunner().invoke(app, ["tokenize", *map(str, arguments)])
    assert again.exit_code == 0, again.output
    assert shards_of(out) == alone


def test_the_leaders_error_reaches_all(interface, tmp_path):
    (tmp_path / "empty").mkdir()

    def work(group):
        return tokenize(
            tmp_path / "empty", tmp_path / "out", interface, group=group
        )

    first, *others = share(work, 3)
    assert isinstance(first, DataError) and "empty" in str(first)
    for other in others:
        assert str(other) == f"process 0 of this run gave up: {first}"


def test_the_leaders_error_ends_work_under_way(
    corpus, interface, tmp_path, monkeypatch
):
    lead = threading.Event()

    class Failing(Report):
        def update(self, done, seconds, failures):
            lead.set()
            raise OSError("disk full")

    class Waiting(Report):
        def update(self, done, seconds, failures):
            lead.wait(60)
            time.sleep(0.3)

    def work(group):
        return tokenize(
            corpus,
            tmp_path / "out",
            interface,
            items_per_shard=1,
            workers=0,
            group=group,
            report=Waiting() if group.rank else Failing(),
        )

    first, other = share(work)
    assert isinstance(first, OSError)
    assert str(other) == "process 0 of this run gave up: disk full"
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_too_many_failures_end_all(corpus, interface, tmp_path):
    lines = [*corpus.glob("*/*/*/*.flac"), *(f"no{i}.wav" for i in range(8))]
    files = tmp_path / "files.txt"
    files.write_text("\n".join(map(str, lines)))

    def work(group):
        return tokenize(
            files,
            tmp_path / "out",
            interface,
            items_per_shard=1,
            workers=0,
            group=group,
            max_failures=0.1,
        )

    for error in share(work):
        assert isinstance(error, DataError)
        assert "of 16 items failed, more than --max-failures" in str(error)


@pytest.mark.parametrize("what", ["model", "settings"])
def test_followers_must_have_the_same_model(
    corpus, interface, alone, parity, tmp_path, what
):
    other = PretrainedFocalCodec.from_pretrained(
        str(
            parity / "causal_50hz"
            if what == "model"
            else parity / "offline_50hz"
        ),
        run_opts={"device": "cpu"},
    )
    if what == "settings":
        other.window = 30.0

    def work(group):
        return tokenize(
            corpus,
            tmp_path / "tokens",
            other if group.rank else interface,
            items_per_shard=1,
            workers=0,
            group=group,
        )

    info, error = share(work)
    assert isinstance(error, DataError)
    assert "process 1 has another model or other settings" in str(error)
    # The one that fits has done it all.
    assert info.rows == SHARDS
    assert shards_of(tmp_path / "tokens") == alone


def test_a_folder_that_is_not_shared(corpus, interface, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_SEEN_AFTER", 0.2)

    def work(group):
        return tokenize(
            corpus,
            tmp_path / f"tokens{group.rank}",
            interface,
            items_per_shard=1,
            workers=0,
            group=group,
        )

    info, error = share(work)
    assert info.rows == SHARDS
    assert "is the folder shared by all machines?" in str(error)


def test_the_leader_tells_what_others_do_after_its_last_batch(
    corpus, interface, tmp_path
):
    report = Counter()

    def work(group):
        if group.rank == 0:
            group.take = lambda things: iter(())
        return tokenize(
            corpus,
            tmp_path / "tokens",
            interface,
            items_per_shard=1,
            workers=0,
            group=group,
            report=report if group.rank == 0 else None,
        )

    info, _ = share(work)
    done, seconds, failures = report.last
    assert (done, failures) == (SHARDS, 0)
    assert seconds == pytest.approx(info.duration, abs=0.01)


def test_a_lost_process_leaves_failures_to_be_tried_again(
    corpus, interface, tmp_path
):
    broken = next(corpus.glob("*/*/*/*.flac"))
    files = tmp_path / "files.txt"
    files.write_text(f"{tmp_path / 'a.flac'}\n")
    arguments = (files, tmp_path / "out", interface)
    options = {"workers": 0, "max_failures": 1.0}
    assert tokenize(*arguments, **options).failures == 1
    (tmp_path / "a.flac").write_bytes(broken.read_bytes())

    class Lost(Alone):
        """Two processes, of which the other takes all and is lost."""

        size = 2

        def take(self, things):
            return iter(())

    info = tokenize(
        *arguments, **options, retry_failures=True, group=Lost(), lost_after=0
    )
    assert (info.rows, info.failures) == (1, 0)


def test_the_environment_says_who_is_who(monkeypatch):
    assert find_group({"WORLD_SIZE": "1", "RANK": "0"}).size == 1
    # sbatch's script itself is no step of several tasks.
    assert find_group({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).size == 1
    for environ, words in (
        ({"RANK": "x", "WORLD_SIZE": "2"}, "must be numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "do not fit"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is missing"),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
            "SLURM_JOB_ID is missing",
        ),
    ):
        with pytest.raises(DataError, match=words):
            find_group(environ)


def test_a_port_that_is_taken_is_told(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        environ = slurm_environ(0, listener.getsockname()[1])
        with pytest.raises(DataError, match="process 0 of 2 cannot meet"):
            find_group(environ)


def test_followers_wait_for_a_leader_that_starts_late(monkeypatch):
    port = free_port()
    found = {}

    def follow():
        found["follower"] = find_group(slurm_environ(1, port))

    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(1.0)
    leader = find_group(slurm_environ(0, port))
    thread.join(60)
    leader.tell("plan", "here")
    assert found["follower"].hear("plan") == "here"
    assert (leader.rank, found["follower"].rank) == (0, 1)


def test_a_leader_that_never_comes_is_told(monkeypatch):
    monkeypatch.setattr(groups, "_ARRIVAL", groups.timedelta(seconds=1))
    with pytest.raises(DataError, match="process 1 of 2 cannot meet"):
        find_group(slurm_environ(1, free_port()))


@pytest.mark.parametrize("job", range(0, 100_000, 7919))
def test_slurm_ports_are_free_for_all(job):
    environ = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "3"}
    host, port = groups._slurm_address(
        {**environ, "SLURM_STEP_NODELIST": "n[07-09],m1"}
    )
    assert host == "n07" and 20000 <= port < 32000


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("big1", "big1"),
        ("gpu[3,5-7]", "gpu3"),
        ("r[01-02]n[003-004],x", "r01n003"),
        ("a-b-[10]", "a-b-10"),
    ],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


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
def test_local_place(environ, place):
    assert local_place(environ) == place


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
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda pid: range(12), raising=False
    )
    assert default_workers("cuda") == 8
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers("cuda:3") == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert default_workers("cuda") == 1


def test_together_without_a_store_keeps_the_error():
    def lost(*args):
        raise DataError("lost")

    group = SimpleNamespace(rank=1, size=2, add=lost)
    with pytest.raises(ValueError, match="the first"), together(group):
        raise ValueError("the first")
    check(Alone())
