"""Starting the processes of one machine."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.main import get_command

from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.cli.tokenize import _again
from speechbrain_focalcodec.jobs import launch as module
from speechbrain_focalcodec.jobs.launch import default_processes, launch

WAIT = """
import os, sys, time
from speechbrain_focalcodec.jobs.launch import end_with_parent
end_with_parent()
open(f"{sys.argv[1]}/{os.environ['RANK']}", "w").write(str(os.getpid()))
time.sleep(300)
"""
RUN = "from speechbrain_focalcodec.jobs.launch import launch; import sys;"
RUN += "sys.exit(launch(['-c', sys.argv[1], sys.argv[2]], 2))"


def test_each_knows_who_it_is(tmp_path):
    # The others end with the leader: it waits for the second one's file.
    script = """if True:
        import json, os, sys, time
        here = sys.argv[1] + "/"
        with open(here + "new" + os.environ["RANK"], "w") as file:
            json.dump(dict(os.environ), file)
        os.rename(file.name, here + os.environ["RANK"])
        while not os.path.exists(here + "1"):
            time.sleep(0.01)
    """
    assert launch(["-c", script, str(tmp_path)], 2) == 0
    found = [json.loads((tmp_path / str(r)).read_text()) for r in range(2)]
    assert [env["LOCAL_RANK"] for env in found] == ["0", "1"]
    assert {env["WORLD_SIZE"] for env in found} == {"2"}
    assert len({env["MASTER_PORT"] for env in found}) == 1
    assert all(int(env["OMP_NUM_THREADS"]) >= 1 for env in found)


def test_the_leader_decides(tmp_path):
    code = "import os, sys, time; rank = int(os.environ['RANK']);"
    start = time.monotonic()
    assert launch(["-c", code + "rank and time.sleep(60); exit(3)"], 3) == 3
    assert time.monotonic() - start < 50
    killed = "os.kill(os.getpid(), 9)"
    assert launch(["-c", code + killed], 1) == 128 + signal.SIGKILL


def test_who_does_not_listen_is_killed(tmp_path, monkeypatch):
    # As a follower that waits in C++ for a leader which is gone.
    code = """if True:
        import os, signal, sys, time
        file = sys.argv[1] + "/deaf"
        if os.environ["RANK"] == "1":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open(file, "w").close()
            time.sleep(60)
        while not os.path.exists(file):
            time.sleep(0.01)
    """
    monkeypatch.setattr(module, "_GRACE", 0.2)
    start = time.monotonic()
    assert launch(["-c", code, str(tmp_path)], 2) == 0
    assert time.monotonic() - start < 50


def test_a_signal_is_sent_once(tmp_path):
    # A second one would cut off how the first ends the process.
    script = """if True:
        import os, signal, sys, time
        here = sys.argv[1] + "/" + os.environ["RANK"]
        found = []
        signal.signal(signal.SIGTERM, lambda *received: found.append(received))
        open(here, "w").write(str(os.getpid()))
        while not found:
            time.sleep(0.01)
        if os.environ["RANK"] == "1":
            time.sleep(0.3)  # the leader ends in the meantime
        open(here + "-received", "w").write(str(len(found)))
    """
    starter, _ = begin(tmp_path, script)
    starter.terminate()
    assert starter.wait(100) == 128 + signal.SIGTERM
    found = [tmp_path / f"{rank}-received" for rank in range(2)]
    assert [path.read_text() for path in found] == ["1", "1"]


def begin(tmp_path, script=WAIT):
    """Two processes that sleep; what started them, and their numbers."""
    command = [sys.executable, "-c", RUN, script, str(tmp_path)]
    starter = subprocess.Popen(command)
    until = time.monotonic() + 100
    pids = []
    while len(pids) < 2 and time.monotonic() < until:
        time.sleep(0.05)
        texts = [path.read_text() for path in tmp_path.iterdir()]
        pids = [int(text) for text in texts if text]
    assert len(pids) == 2
    return starter, pids


def wait_until_gone(pids):
    until = time.monotonic() + 50
    left = set(pids)
    while left and time.monotonic() < until:
        for pid in list(left):
            try:
                os.kill(pid, 0)
                with open(f"/proc/{pid}/stat") as stat:
                    if stat.read().split()[2] == "Z":
                        left.discard(pid)
            except (ProcessLookupError, FileNotFoundError):
                left.discard(pid)
        time.sleep(0.05)
    assert not left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all(number, tmp_path):
    starter, pids = begin(tmp_path)
    starter.send_signal(number)
    assert starter.wait(100) == 128 + number
    wait_until_gone(pids)


def test_nothing_stays_when_the_starter_is_killed(tmp_path):
    starter, pids = begin(tmp_path)
    starter.kill()
    starter.wait(100)
    wait_until_gone(pids)


def test_how_many(monkeypatch):
    for name in ("RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "cores", lambda: 16)
    assert default_processes("cpu") == 4
    assert default_processes("cuda:1") == 1
    monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(module, "_GPUS", ())
    assert default_processes(None) == 2
    monkeypatch.setenv("RANK", "0")
    assert default_processes("cpu") == 1


def test_each_is_given_the_options_of_the_command():
    command = get_command(app).commands["tokenize"]
    options = {
        "--model": "mini",
        "--context": "0.0",
        "--workers": "0",
        "--max-failures": "0.0",
        "--lost-after": "0.0",
    }
    given = [text for option in options.items() for text in option]
    ctx = command.make_context(
        "tokenize", [*given, "--verify", "--processes", "2", "--", "-a", "out"]
    )
    module_name, *again = _again(ctx)[2:]
    assert module_name == "tokenize" and again[-3:] == ["--", "-a", "out"]
    then = command.make_context("tokenize", again)
    assert then.params == ctx.params | {"processes": 1}


def test_a_source_that_is_not_there_is_told_once(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    command = [sys.executable, "-m", "speechbrain_focalcodec.cli", "tokenize"]
    command += [str(tmp_path / "no"), str(tmp_path / "out")]
    result = subprocess.run(
        [*command, "--processes", "2"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.count("Invalid value for SOURCE") == 1
