"""`focalcodec tokenize` is killed, and ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpora import clip, files_of, rows_of

from speechbrain_focalcodec.corpus.run import tokenize
from speechbrain_focalcodec.inference import PretrainedFocalCodec

DOCUMENTED = {
    "dataset.json",
    "README.md",
    "failures.parquet",
    *(f"data/tokens-0000{i}-of-00004.parquet" for i in range(4)),
    "work/plan.json",
    "work/items.parquet",
}
COMMAND = [sys.executable, "-m", "speechbrain_focalcodec.cli", "tokenize"]
OPTIONS = [
    *("--model", "tests/parity/offline_50hz", "--device", "cpu"),
    *("--shard-size", "20", "--batch-duration", "4"),
]


@pytest.mark.parametrize(
    "mode, least",
    [
        ("renames", 16),
        pytest.param("random", 8, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment(tmp_path, mode, least):
    source = tmp_path / "in"
    for number in range(14):
        clip(source / f"{number}.wav", 0.5 + 0.1 * number)
    (source / "5.wav").write_text("broken")
    outs = tmp_path / "out"
    script = Path(__file__).parent / "kill_tokenize.py"
    done = subprocess.run(
        [sys.executable, script, mode, source, outs],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["killed"] >= least
    whole = files_of(outs / "whole", ["data", ".", "work"])
    assert set(whole) == DOCUMENTED
    ids = sorted(str(n) for n in range(14) if n != 5)
    assert rows_of(outs / "whole")["id"].to_pylist() == ids
    assert len(list(outs.iterdir())) > 3
    for out in outs.iterdir():
        assert files_of(out, ["data", ".", "work"]) == whole, out.name


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """400 items, and what an uninterrupted run makes of them."""
    folder = tmp_path_factory.mktemp("many")
    paths = [clip(folder / f"{n}.wav", 0.5 + n / 10) for n in range(10)]
    lines = [f"{n:03d}\t{paths[n % 10]}" for n in range(400)]
    (folder / "list.txt").write_text("\n".join(lines))
    complete(folder, folder / "whole")
    return folder


def complete(many, out):
    """Run, or go on, undisturbed, as the command would."""
    interface = PretrainedFocalCodec.from_pretrained(
        "tests/parity/offline_50hz", run_opts={"device": "cpu"}
    )
    options = {"items_per_shard": 20, "batch_duration": 4.0, "workers": 0}
    tokenize(many / "list.txt", out, interface, **options)


def start(many, out, processes):
    """Start a run; return when it has published a shard."""
    process = subprocess.Popen(
        [
            *(*COMMAND, many / "list.txt", out, *OPTIONS, "--workers", "2"),
            *("--processes", str(processes)),
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 200
    while not list(out.glob("data/tokens-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    return process


def processes_of(session):
    """Processes of a session that live, by number."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def check_end(process):
    """No process of it is left, soon after it has ended."""
    until = time.monotonic() + 100
    while left := processes_of(process.pid):
        assert time.monotonic() < until, left
        time.sleep(0.02)


def finish(many, out):
    assert not (out / "dataset.json").exists()
    done = {path: path.stat().st_mtime_ns for path in out.glob("data/tokens-*")}
    assert 0 < len(done) < 20
    complete(many, out)
    folders = ["data", ".", "work"]
    assert files_of(out, folders) == files_of(many / "whole", folders)
    for path, modified in done.items():
        assert path.stat().st_mtime_ns == modified


@pytest.mark.parametrize(
    "processes", [pytest.param(1, marks=pytest.mark.slow), 2]
)
def test_no_process_survives_its_parent(tmp_path, many, processes):
    process = start(many, tmp_path / "out", processes)
    assert len(processes_of(process.pid)) > 3  # workers and their server
    process.kill()
    process.wait()
    check_end(process)
    finish(many, tmp_path / "out")


@pytest.mark.parametrize(
    "number, group, processes",
    [
        # Ctrl-C reaches all processes of a terminal.
        pytest.param(signal.SIGINT, True, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, 2, marks=pytest.mark.slow),
        # systemd, Slurm and timeout signal all processes of a run.
        (signal.SIGTERM, True, 2),
    ],
)
def test_a_signal_ends_it_in_one_line(tmp_path, many, number, group, processes):
    process = start(many, tmp_path / "out", processes)
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    assert errors.splitlines() == [
        "stopped; run the same command again to go on: finished shards are kept"
    ], errors
    check_end(process)
    finish(many, tmp_path / "out")
