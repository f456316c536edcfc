"""Runs on a Ray cluster of this machine."""

import faulthandler
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from corpora import files_of
from make_corpus import make_corpus
from typer.testing import CliRunner

from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus import ray_engine
from speechbrain_focalcodec.corpus.ray_engine import (
    RayOptions,
    tokenize_with_ray,
)
from speechbrain_focalcodec.corpus.run import tokenize
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs.ranks import Rank
from speechbrain_focalcodec.jobs.report import Report

SHARDS = 8
OPTIONS = {"items_per_shard": 1, "workers": 0}
ONE = RayOptions(workers=1, cpus=1.0)
TWO = RayOptions(workers=2, cpus=1.0)


def load(device):
    model = Path(__file__).parent / "parity" / "offline_50hz"
    return PretrainedFocalCodec.from_pretrained(
        str(model), run_opts={"device": "cpu"}
    )


def load_and_die(folder, times, device):
    """Load; the first actors die when they make a shard."""
    interface = load(device)
    if device is None:
        number = len(list(folder.iterdir()))
        (folder / str(os.getpid())).touch()
        if number < times:
            encode = interface.codec.encode

            def die(*args, **options):
                os.kill(os.getpid(), signal.SIGKILL)

            object.__setattr__(interface.codec, "encode", die)
            assert interface.codec.encode is not encode
    return interface


def load_another(device):
    interface = load(device)
    if device is None:
        interface.window = 30.0
    return interface


def load_with_error(device):
    if device is None:
        raise DataError("the model's file is damaged")
    return load(device)


@pytest.fixture(scope="module", autouse=True)
def _crashes_are_told(request):
    """Ray removes the handlers of crashes when it ends."""
    yield
    if faulthandler.is_enabled():
        faulthandler.disable()
        faulthandler.enable(request.config.stash[fault_handler_stderr_fd_key])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return make_corpus("LibriSpeech", folder, ["dev-clean"], 4, 2, 0.3)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Files of the dataset that one process makes."""
    out = tmp_path_factory.mktemp("whole") / "tokens"
    tokenize(corpus, out, load("cpu"), **OPTIONS)
    return files_of(out, ["data", ".", "work"])


class Watch(Report):
    """Keeps the progress."""

    def __init__(self):
        self.updates = []

    def update(self, done, seconds, failures):
        self.updates.append((done, seconds, failures))


@pytest.fixture(scope="module")
def cluster():
    """Ray on two cores of this machine."""
    import ray
    from ray import cloudpickle

    # Actors cannot import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 is slow if busy
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


def test_lost_actors_are_restarted(cluster, corpus, whole, tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    watch, out = Watch(), tmp_path / "tokens"
    info = tokenize_with_ray(
        *(corpus, out, partial(load_and_die, pids, 2), TWO),
        report=watch,
        **OPTIONS,
    )
    assert files_of(out, ["data", ".", "work"]) == whole
    # Two actors, and those that replaced them.
    assert len(list(pids.iterdir())) == 4
    done, seconds, failures = watch.updates[-1]
    assert (done, failures) == (SHARDS, 0)
    assert seconds == pytest.approx(info.duration, abs=0.01)


def test_a_shard_that_always_ends_its_actor(
    cluster, corpus, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_engine, "TASK_RETRIES", 1)
    pids = tmp_path / "pids"
    pids.mkdir()
    out = tmp_path / "tokens"
    with pytest.raises(DataError, match="a Ray worker failed: .*8 of 8 shards"):
        tokenize_with_ray(
            corpus, out, partial(load_and_die, pids, 99), ONE, **OPTIONS
        )
    assert len(list(pids.iterdir())) >= 2
    tokenize(corpus, out, load("cpu"), **OPTIONS)
    assert files_of(out, ["data", ".", "work"]) == whole


def test_a_worker_with_another_model(cluster, corpus, tmp_path):
    with pytest.raises(DataError, match="or a worker another model"):
        tokenize_with_ray(corpus, tmp_path / "a", load_another, ONE, **OPTIONS)


@pytest.mark.slow
def test_errors_of_workers(cluster, corpus, tmp_path):
    with pytest.raises(DataError, match="the model's file is damaged"):
        tokenize_with_ray(
            corpus, tmp_path / "b", load_with_error, ONE, **OPTIONS
        )
    files = tmp_path / "files.txt"
    files.write_text("a.wav\nb.wav\nc.wav\n")
    with pytest.raises(DataError, match="items failed, more than"):
        tokenize_with_ray(files, tmp_path / "c", load, ONE, **OPTIONS)


def test_the_command_finishes_a_run(cluster, corpus, whole, tmp_path):
    arguments = ["--model", "tests/parity/offline_50hz", "--device", "cpu"]
    arguments += ["--engine", "ray", "--ray-workers", "1", "--ray-cpus", "1"]
    arguments += ["--shard-size", "1", "--workers", "0"]
    out = tmp_path / "tokens"
    tokenize(corpus, out, load("cpu"), rank=Rank(1, 2), **OPTIONS)
    done = CliRunner().invoke(
        app, ["tokenize", str(corpus), str(out), *arguments]
    )
    assert done.exit_code == 0, done.output
    assert "8 utterances" in done.output
    assert "in 8 shards" in done.output
    assert files_of(out, ["data", ".", "work"]) == whole
    wrong = CliRunner().invoke(
        app, ["tokenize", str(corpus), str(out), "--engine", "spark"]
    )
    assert wrong.exit_code == 2 and "must be ray" in wrong.output


def test_room_for_workers():
    both = {"CPU": 64.0, "GPU": 8.0}
    assert RayOptions().fit(both) == (8, 1.0)
    assert RayOptions(gpus=0.25, cpus=1).fit(both) == (32, 0.25)
    assert RayOptions(gpus=0, cpus=0).fit(both) == (1, 0.0)
    assert RayOptions(workers=3).fit(both) == (3, 1.0)
    # A cluster may grow.
    assert RayOptions("auto", gpus=1.0).fit({"CPU": 2.0}) == (1, 1.0)
    with pytest.raises(DataError, match="2 CPUs and 1 GPUs, and there are 2"):
        RayOptions(gpus=1.0).fit({"CPU": 2.0})
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        RayOptions(workers=0)
    with pytest.raises(ValueError, match="gpus must be 0 or more"):
        RayOptions(gpus=-1.0)


def test_a_cluster_that_cannot_be_reached(corpus, tmp_path, monkeypatch):
    import ray

    def refuse(**options):
        assert options["address"] == "auto"
        assert "include_dashboard" not in options
        raise ConnectionError("nobody there\nmore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(DataError, match="cluster auto .nobody there.; check"):
        tokenize_with_ray(
            corpus, tmp_path / "out", load, RayOptions("auto"), **OPTIONS
        )


def test_ray_keeps_the_handler_of_signals(corpus, tmp_path, monkeypatch):
    import ray

    def handler(number, frame):
        pass

    def begin(**options):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def resources():
        found.append(signal.getsignal(signal.SIGTERM))
        return {}

    found = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", begin)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", resources)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(DataError, match="a worker needs"):
            tokenize_with_ray(corpus, tmp_path / "out", load, **OPTIONS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [handler]


def test_without_ray_the_extra_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(
        app,
        ["tokenize", str(corpus), str(tmp_path / "out"), "--engine", "ray"],
    )
    assert done.exit_code == 1
    assert "pip install 'speechbrain_focalcodec[ray]'" in done.output
    assert not (tmp_path / "out").exists()
