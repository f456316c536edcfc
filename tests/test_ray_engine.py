"""Runs on a Ray cluster: a real one, and one of threads for what is rare."""

import faulthandler
import os
import queue
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from make_corpus import make_corpus
from typer.testing import CliRunner

from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus import ray_actors, ray_engine
from speechbrain_focalcodec.corpus.layout import check_shards, read_info
from speechbrain_focalcodec.corpus.maker import ShardMaker
from speechbrain_focalcodec.corpus.ray_engine import (
    RayOptions,
    tokenize_with_ray,
)
from speechbrain_focalcodec.corpus.run import tokenize
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs.report import Report

SHARDS = 8
OPTIONS = {"items_per_shard": 1, "workers": 0}
TWO = RayOptions(workers=2, cpus=1.0)


def load(device):
    model = Path(__file__).parent / "parity" / "offline_50hz"
    return PretrainedFocalCodec.from_pretrained(
        str(model), run_opts={"device": "cpu"}
    )


def load_and_tell(folder, device):
    """Load, and leave the process's id where a test finds it."""
    (folder / str(os.getpid())).touch()
    return load(device)


@pytest.fixture(scope="module", autouse=True)
def _crashes_are_told(request):
    """Ray takes the handlers of crashes away when it ends.

    What crashed this process in a later file would do so without a word.
    """
    yield
    if faulthandler.is_enabled():
        faulthandler.disable()
        faulthandler.enable(request.config.stash[fault_handler_stderr_fd_key])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return make_corpus("LibriSpeech", folder, ["dev-clean"], 4, 2, 0.3)


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """Return the shards that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "tokens"
    tokenize(corpus, out, load("cpu"), **OPTIONS)
    return shards_of(out)


def shards_of(out):
    """Return the content of a dataset's shards, checked."""
    paths = list(check_shards(out, read_info(out), hashes=True))
    return {path.name: path.read_bytes() for path in paths}


class Watch(Report):
    """Keeps what it is told; calls something at the first batch."""

    def __init__(self, first=lambda: None):
        self.first, self.told = first, []

    def update(self, done, seconds, failures):
        if not self.told:
            self.first()
        self.told.append((done, seconds, failures))


class RayActorError(Exception):
    pass


class FakeRay:
    """Ray with threads for actors, which can be lost.

    `lose` is asked before each shard that an actor is given first.
    """

    exceptions = SimpleNamespace(RayActorError=RayActorError)

    def __init__(self):
        self.started = self.given = 0
        self.killed = []
        self.lose = lambda actor, shards: False
        self.resources = {"CPU": 2.0}
        self.is_initialized = lambda: True

    def cluster_resources(self):
        return self.resources

    def remote(self, **options):
        self.options = options
        return lambda cls: SimpleNamespace(remote=partial(self._start, cls))

    def _start(self, cls, *args):
        self.started += 1
        actor = SimpleNamespace(number=self.started)
        actor.worker = cls(*args)

        def step(shards):
            self.given += len(shards)
            if self.lose(actor, shards):
                return Ref(RayActorError("the node is gone\nfor good"))
            return Ref(actor.worker.step(shards))

        actor.step = SimpleNamespace(remote=step)
        return actor

    def wait(self, refs, timeout):
        return refs[:1], refs[1:]

    def get(self, ref):
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def kill(self, actor):
        self.killed.append(actor.number)


class Ref:
    def __init__(self, value):
        self.value = value


@pytest.fixture
def fake(monkeypatch):
    ray = FakeRay()
    monkeypatch.setattr(ray_engine, "import_extra", lambda *names: ray)
    monkeypatch.setattr(ray_actors, "_LOOK", 0.05)
    return ray


@pytest.fixture(scope="module")
def cluster():
    """Return Ray on two workers of this machine."""
    import ray
    from ray import cloudpickle

    # Actors cannot import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


def test_a_killed_actor_is_replaced(cluster, corpus, alone, tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    here = os.getpid()

    def kill_one():
        names = {int(path.name) for path in pids.iterdir()} - {here}
        os.kill(max(names), signal.SIGKILL)

    watch = Watch(kill_one)
    info = tokenize_with_ray(
        corpus,
        tmp_path / "tokens",
        partial(load_and_tell, pids),
        TWO,
        report=watch,
        **OPTIONS,
    )
    assert info.rows == SHARDS
    assert shards_of(tmp_path / "tokens") == alone
    # This process, two actors and the one that replaced one of them.
    assert len(list(pids.iterdir())) >= 3
    assert watch.told[-1][0] == SHARDS


def test_the_same_dataset(fake, corpus, alone, tmp_path):
    watch = Watch()
    out = tmp_path / "tokens"
    info = tokenize_with_ray(corpus, out, load, TWO, report=watch, **OPTIONS)
    assert shards_of(out) == alone
    assert fake.started == 2 and sorted(fake.killed) == [1, 2]
    assert fake.options == {"num_cpus": 1.0, "num_gpus": 0.0, "max_restarts": 0}
    done, seconds, failures = watch.told[-1]
    assert (done, failures) == (SHARDS, 0)
    assert seconds == pytest.approx(info.duration, abs=0.01)
    # Again: no cluster is asked for.
    assert tokenize_with_ray(corpus, out, load, TWO, **OPTIONS) == info
    assert fake.started == 2


def test_each_engine_goes_on_with_the_others_run(fake, corpus, alone, tmp_path):
    out = tmp_path / "tokens"
    tokenize(corpus, out, load("cpu"), **OPTIONS)
    for name in list(alone)[2:5]:
        (out / "data" / name).unlink()
    watch = Watch()
    tokenize_with_ray(corpus, out, load, TWO, report=watch, **OPTIONS)
    assert fake.given == 3 and watch.told[-1][0] == 3
    (out / "data" / list(alone)[0]).unlink()
    tokenize(corpus, out, load("cpu"), **OPTIONS)
    assert shards_of(out) == alone


def test_lost_shards_are_made_again(fake, corpus, alone, tmp_path):
    # The second actor is lost with each shard that it gets, and so on.
    fake.lose = lambda actor, shards: actor.number % 2 == 0 and bool(shards)
    watch = Watch()
    out = tmp_path / "tokens"
    tokenize_with_ray(corpus, out, load, TWO, report=watch, **OPTIONS)
    assert shards_of(out) == alone
    assert fake.started > 2 and 2 in fake.killed
    assert watch.told[-1][0] == SHARDS


def test_progress_of_the_lost_is_not_counted_twice(
    fake, corpus, tmp_path, monkeypatch
):
    lost = []

    def publish(self, shard):
        if not lost:
            lost.append(shard.index)
            raise RuntimeError("CUDA error: a broken GPU")
        return real(self, shard)

    real = ShardMaker._publish
    monkeypatch.setattr(ShardMaker, "_publish", publish)
    files = tmp_path / "files.txt"
    lines = [*corpus.glob("*/*/*/*.flac"), "nowhere.wav"]
    files.write_text("\n".join(map(str, lines)))
    watch = Watch()
    info = tokenize_with_ray(
        files,
        tmp_path / "tokens",
        load,
        TWO,
        report=watch,
        items_per_shard=3,
        workers=0,
        max_failures=0.1,
    )
    assert lost and fake.started == 3
    assert (info.rows, info.failures) == (SHARDS, 1)
    done, seconds, failures = watch.told[-1]
    assert (done, failures) == (SHARDS + 1, 1)
    assert seconds == pytest.approx(info.duration, abs=0.01)


def test_a_shard_that_ends_its_workers_is_named(fake, corpus, tmp_path):
    given = []

    def lose(actor, shards):
        given.append(shards)
        return 1 in shards

    fake.lose = lose
    with pytest.raises(DataError) as error:
        tokenize_with_ray(
            corpus, tmp_path / "out", load, RayOptions(workers=1), **OPTIONS
        )
    text = str(error.value)
    assert text == (
        "shard 1 (items 100-7-0001 to 100-7-0001) has ended its worker 3 "
        "times; the last time: the node is gone: for good"
    )
    assert len(fake.killed) == fake.started == 4
    # Once it is under suspicion, it is given alone.
    assert [shards for shards in given if shards][-1] == [1]


def test_workers_that_cannot_start(fake, corpus, tmp_path):
    fake.lose = lambda actor, shards: True
    with pytest.raises(DataError, match="no worker can start: the node"):
        tokenize_with_ray(corpus, tmp_path / "out", load, TWO, **OPTIONS)
    assert fake.started == 7


def test_bad_input_ends_the_run_at_once(fake, corpus, tmp_path):
    calls = queue.SimpleQueue()

    def load_once(device):
        calls.put(device)
        if calls.qsize() > 1:
            raise DataError("the model's file is damaged")
        return load(device)

    with pytest.raises(DataError, match="gave up: the model's file is dam"):
        tokenize_with_ray(corpus, tmp_path / "out", load_once, TWO, **OPTIONS)
    assert fake.started == 2 and calls.get() == "cpu"


def test_an_actor_with_another_model(fake, corpus, tmp_path):
    def load_another(device):
        interface = load(device)
        if device is None:
            interface.window = 30.0
        return interface

    with pytest.raises(DataError, match="or a worker another model"):
        tokenize_with_ray(
            corpus, tmp_path / "out", load_another, TWO, **OPTIONS
        )


def test_too_many_failures(fake, corpus, tmp_path):
    files = tmp_path / "files.txt"
    files.write_text("a.wav\nb.wav\nc.wav\n")
    with pytest.raises(DataError, match="3 items failed, more than"):
        tokenize_with_ray(files, tmp_path / "out", load, TWO, **OPTIONS)
    assert len(fake.killed) == fake.started


def test_room_for_workers(fake, corpus, tmp_path):
    both = {"CPU": 64.0, "GPU": 8.0}
    assert RayOptions().fit(both) == (8, 1.0)
    assert RayOptions(gpus=0.25, cpus=1).fit(both) == (32, 0.25)
    assert RayOptions(gpus=0, cpus=0).fit(both) == (1, 0.0)
    assert RayOptions(workers=3).fit(both) == (3, 1.0)
    # A cluster may grow.
    assert RayOptions("auto", gpus=1.0).fit({"CPU": 2.0}) == (1, 1.0)
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        RayOptions(workers=0)
    with pytest.raises(ValueError, match="gpus must be 0 or more"):
        RayOptions(gpus=-1.0)
    with pytest.raises(DataError, match="2 CPUs and 1 GPUs, and there are 2"):
        tokenize_with_ray(
            corpus, tmp_path / "out", load, RayOptions(gpus=1.0), **OPTIONS
        )


def test_a_cluster_is_begun_and_ended(fake, corpus, tmp_path, monkeypatch):
    calls = []
    fake.is_initialized = lambda: False
    fake.init = lambda **options: calls.append(options)
    fake.shutdown = lambda: calls.append("shutdown")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for address in (None, "ray://head:10001"):
        tokenize_with_ray(
            corpus,
            tmp_path / str(bool(address)),
            load,
            RayOptions(address, 1, 0.0, 1.0),
            **OPTIONS,
        )
    local, _, remote, _ = calls
    assert calls[1] == calls[3] == "shutdown"
    assert local["address"] == "local" and not local["include_dashboard"]
    assert remote["address"] == "ray://head:10001"
    assert "include_dashboard" not in remote
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"

    def refuse(**options):
        raise ConnectionError("nobody there\nmore")

    fake.init = refuse
    with pytest.raises(DataError, match="cluster auto .nobody there.; check"):
        tokenize_with_ray(
            corpus, tmp_path / "out", load, RayOptions("auto"), **OPTIONS
        )


def test_the_command(fake, corpus, alone, tmp_path):
    arguments = ["--model", "tests/parity/offline_50hz", "--device", "cpu"]
    arguments += ["--engine", "ray", "--ray-workers", "2", "--ray-cpus", "1"]
    arguments += ["--shard-size", "1", "--workers", "0"]
    out = tmp_path / "tokens"
    done = CliRunner().invoke(
        app, ["tokenize", str(corpus), str(out), *arguments]
    )
    assert done.exit_code == 0, done.output
    assert "8 utterances" in done.output
    assert shards_of(out) == alone and fake.started == 2
    wrong = CliRunner().invoke(
        app, ["tokenize", str(corpus), str(out), "--engine", "spark"]
    )
    assert wrong.exit_code == 2 and "must be ray" in wrong.output


def test_without_ray_the_extra_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(
        app,
        ["tokenize", str(corpus), str(tmp_path / "out"), "--engine", "ray"],
    )
    assert done.exit_code == 1
    assert "pip install 'speechbrain_focalcodec[ray]'" in done.output
    assert not (tmp_path / "out").exists()
