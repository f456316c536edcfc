"""What a training logs: metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import test_training
import torch
from speechbrain.nnet.schedulers import StepScheduler, WarmCoolDecayLRSchedule
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from test_training import fit, log_lines, make_brain

from speechbrain_focalcodec.errors import ConfigError, DataError
from speechbrain_focalcodec.training import averages
from speechbrain_focalcodec.training.averages import CodeCounts
from speechbrain_focalcodec.training.run_log import (
    RunLog,
    gradient_norm,
    read_metrics,
)
from speechbrain_focalcodec.training.trackers import make_trackers

corpus = test_training.corpus
# What no two runs have in common.
TIMES = ("seconds_per_step", "audio_per_second")


class FakeRun:
    def __init__(self, options):
        self.options, self.logged, self.metrics = options, [], []

    def log(self, values):
        self.logged.append(values)

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))


@pytest.fixture
def wandb_runs(monkeypatch):
    """Put a module in the place of wandb; the runs that it is asked for."""
    runs = []

    def init(**options):
        runs.append(FakeRun(options))
        return runs[-1]

    module = ModuleType("wandb")
    module.init = init
    module.Audio = lambda data, sample_rate: ("audio", len(data), sample_rate)
    module.Image = lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def without_times(lines):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def of_split(lines, split):
    return [line for line in lines if line["split"] == split]


def test_logs_of_adversarial_training(corpus, tmp_path, wandb_runs):
    brain, counter, data = make_brain(
        "decoder",
        corpus,
        tmp_path,
        adversarial=True,
        log_interval=2,
        loggers=["tensorboard", "wandb"],
        sample_rate=16000,
        num_samples=1,
    )
    fit(brain, counter, data)
    brain.evaluate(data[1], min_key="loss", test_loader_kwargs={})
    lines = read_metrics(tmp_path)

    train = of_split(lines, "train")
    assert [line["step"] for line in train] == [2, 4, 6]
    assert [line["epoch"] for line in train] == [1, 2, 2]
    terms = {
        *("loss", "mel", "stft", "adversarial", "feature_matching"),
        *("discriminator", "discriminator_accuracy"),
        *("score_real", "score_fake"),
        *("grad_norm_generator", "grad_norm_discriminator"),
    }
    for line in train:
        keys = {"split", "step", "epoch", "lr", *TIMES}
        assert line.keys() == terms | keys
        assert line["grad_norm_generator"] > 0
        assert line["grad_norm_discriminator"] > 0
        assert 0 <= line["discriminator_accuracy"] <= 1
        # Two segments of 0.2 s a step.
        rate = 0.4 / line["seconds_per_step"]
        assert line["audio_per_second"] == pytest.approx(rate, rel=1e-3)
    epochs = of_split(lines, "train_epoch")
    assert [line["step"] for line in epochs] == [3, 6]
    assert epochs[0].keys() >= terms
    for split, steps in {"valid": [3, 6], "test": [6]}.items():
        found = of_split(lines, split)
        assert [line["step"] for line in found] == steps
        assert found[0].keys() == {
            *("split", "step", "epoch", "loss", "mel", "stft")
        }
    # The same numbers as in the text.
    text = log_lines(tmp_path)[0]
    norm = epochs[0]["grad_norm_generator"]
    assert norm > 1 and f"train grad_norm_generator: {norm:.2f}" in text
    assert "train discriminator_accuracy" in text
    assert "train grad_norm_discriminator" in text

    board = events(tmp_path)
    scalars = {
        name: [(event.step, event.value) for event in board.Scalars(name)]
        for name in board.Tags()["scalars"]
    }
    assert [step for step, _ in scalars["train/mel"]] == [2, 4, 6]
    assert scalars["valid/loss"][1][1] == pytest.approx(
        of_split(lines, "valid")[1]["loss"]
    )
    heard = ["utt0_original", "utt0_reconstruction"]
    assert sorted(board.Tags()["audio"]) == heard
    assert board.Audio(heard[0])[0].sample_rate == 16000
    assert board.Tags()["images"] == ["utt0"]
    assert [image.step for image in board.Images("utt0")] == [3, 6, 6]

    (run,) = wandb_runs
    assert run.options["resume"] == "allow"
    assert run.options["config"]["max_grad_norm"] == 5.0
    assert ("*", "step") in run.metrics
    shown = [line for line in run.logged if "train/mel" in line]
    assert [line["step"] for line in shown] == [2, 4, 6]
    kinds = {key for line in run.logged for key in line}
    assert kinds >= {"valid/mel", "test/mel", "utt0", *heard}


@pytest.mark.parametrize("stage", ["decoder", "quantizer"])
def test_a_killed_run_continues_its_log(corpus, tmp_path, stage):
    """Killed in the second epoch, past its last checkpoint, in mid-line."""

    def run(output):
        return make_brain(
            stage,
            corpus,
            output,
            run_opts={"ckpt_interval_steps": 2},
            epochs=3,
            log_interval=2,
            num_samples=0,
        )

    fit(*run(tmp_path / "whole"))
    brain, counter, data = run(tmp_path / "parts")
    original = brain.fit_batch

    def killed(batch):
        if counter.current == 2 and brain.step == 2:
            original(batch)
            # Before the checkpoint of step 5; the last is that of step 3.
            raise KeyboardInterrupt
        return original(batch)

    brain.fit_batch = killed
    with pytest.raises(KeyboardInterrupt):
        fit(brain, counter, data)
    log = tmp_path / "parts" / "metrics.jsonl"
    before = log.read_text()
    assert of_split(read_metrics(log), "train")[-1]["step"] == 4
    log.write_text(before + '{"split": "train", "st')
    fit(*run(tmp_path / "parts"))
    for line in log.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    got, want = (
        without_times(read_metrics(tmp_path / name))
        for name in ("parts", "whole")
    )
    assert got == want
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")
    assert len(log.read_text().splitlines()) == len(want)


def test_code_usage_of_training(corpus, tmp_path):
    """Also over a kill within an epoch, with a checkpoint a step."""

    def run(output):
        return make_brain(
            "quantizer",
            corpus,
            output,
            run_opts={"ckpt_interval_steps": 1},
            epochs=1,
            num_samples=0,
        )

    fit(*run(tmp_path / "whole"))
    brain, counter, data = run(tmp_path / "parts")
    original = brain.fit_batch

    def killed(batch):
        if brain.step == 3:
            raise KeyboardInterrupt
        return original(batch)

    brain.fit_batch = killed
    with pytest.raises(KeyboardInterrupt):
        fit(brain, counter, data)
    fit(*run(tmp_path / "parts"))
    whole, parts = (
        of_split(read_metrics(tmp_path / name), "train_epoch")[0]
        for name in ("whole", "parts")
    )
    assert 0 < whole["code_usage"] <= 1
    assert whole == parts
    assert "grad_norm" in whole
    assert "train code_entropy" in log_lines(tmp_path / "parts")[0]


def test_a_checkpoint_without_log_can_be_resumed(corpus, tmp_path):
    """From the time when checkpoints held no log."""
    small = {"num_samples": 0}
    fit(*make_brain("quantizer", corpus, tmp_path, epochs=1, **small))
    (manifest,) = tmp_path.glob("save/CKPT*/MANIFEST.json")
    listed = json.loads(manifest.read_text())
    for name in ("run_log.ckpt", "code_counts.ckpt"):
        (manifest.parent / name).unlink()
        del listed["files"][name]
    manifest.write_text(json.dumps(listed))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match="missing a load path"):
        fit(*make_brain("quantizer", corpus, tmp_path, epochs=2, **small))
    assert [line["step"] for line in read_metrics(tmp_path)] == [6, 6, 6]


@pytest.mark.parametrize("norm", [1e-3, 1e3])
def test_norms_are_those_before_clipping(corpus, tmp_path, monkeypatch, norm):
    clip, totals = torch.nn.utils.clip_grad_norm_, []

    def spy(*args):
        totals.append(float(clip(*args)))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    fit(
        *make_brain(
            "decoder",
            corpus,
            tmp_path,
            adversarial=True,
            epochs=1,
            log_interval=1,
            max_grad_norm=norm,
            num_samples=0,
        )
    )
    lines = of_split(read_metrics(tmp_path), "train")
    got = [
        line[f"grad_norm_{name}"]
        for line in lines
        for name in ("discriminator", "generator")
    ]
    assert got == pytest.approx(totals)


@pytest.mark.parametrize("kind", ["lr_schedule", "lr_annealing"])
def test_the_discriminator_keeps_its_own_rate(corpus, tmp_path, kind):
    """A tenth of the decoder's, as the optimizers were made."""
    schedules = {
        "lr_schedule": WarmCoolDecayLRSchedule(1e-2, 2, 2, 8, 1.0),
        "lr_annealing": StepScheduler(1e-2, decay_factor=0.5, decay_drop=1),
    }
    brain, counter, data = make_brain(
        "decoder",
        corpus,
        tmp_path,
        adversarial=True,
        num_samples=0,
        **{kind: schedules[kind]},
    )
    rates = []
    step = brain.optimizers_step

    def spy():
        optimizers = brain.optimizers_dict
        rates.append(
            [
                optimizers[name].param_groups[0]["lr"]
                for name in ("generator", "discriminator")
            ]
        )
        step()

    brain.optimizers_step = spy
    fit(brain, counter, data)
    assert len({generator for generator, _ in rates}) > 1
    for generator, discriminator in rates:
        assert discriminator == pytest.approx(0.1 * generator)


def test_norm_under_a_loss_scale():
    first, second, unused = (torch.nn.Parameter(torch.ones(1)) for _ in "123")
    first.grad, second.grad = torch.tensor([300.0]), torch.tensor([400.0])
    groups = [{"params": [first]}, {"params": [second, unused]}]
    assert gradient_norm(torch.optim.SGD(groups, lr=1.0), 100.0) == 5.0


def test_accuracy_of_the_discriminator(corpus, tmp_path):
    brain, _, _ = make_brain("decoder", corpus, tmp_path, adversarial=True)
    scores = iter(
        [
            [torch.tensor([-2.0, -1.0]), torch.tensor([3.0])],  # fake
            [torch.tensor([2.0, 2.0]), torch.tensor([1.0])],  # real
        ]
    )
    brain.modules = SimpleNamespace(
        discriminator=lambda x: (next(scores), None), training=True
    )
    sig = torch.zeros(1, 4)
    brain.opponent.opposing_loss({"estimate": sig, "target": sig})
    means = brain.run_log.window.means()
    # All that is real is known, and one of two kinds of fake.
    assert means["discriminator_accuracy"] == 0.75
    assert (means["score_real"], means["score_fake"]) == (1.5, 0.75)


def test_counts_leave_padding_out():
    counts = CodeCounts(8)
    toks = torch.tensor([[0, 1, 7, 7], [1, 1, 1, 1]])
    counts.add(toks, torch.tensor([2, 0]))
    counts.add(toks, torch.tensor([0, 2]))
    assert counts.counts.tolist() == [1, 3, 0, 0, 0, 0, 0, 0]
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(8)
    assert counts.stats() == {
        "code_usage": 0.25,
        "code_entropy": pytest.approx(entropy),
    }
    counts.clear()
    assert counts.stats() == {}


def test_starting_anew_keeps_the_old_log(tmp_path):
    for loss in (1.0, 2.0, 3.0):
        log = RunLog(tmp_path)
        log.resume(0)
        log.write("valid", 3, 1, {"loss": loss})
    losses = {
        path.name: read_metrics(path)[0]["loss"]
        for path in tmp_path.glob("metrics*")
    }
    assert losses == {
        "metrics.1.jsonl": 1.0,
        "metrics.2.jsonl": 2.0,
        "metrics.jsonl": 3.0,
    }


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(averages, "gather", lambda value: [value])
    log = RunLog(tmp_path, interval=1, loggers=["tensorboard"])
    log.resume(0)
    log.window.add("loss", 1.0)
    log.step_done(1, 1, 0.1)
    log.write("valid", 1, 1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite(tmp_path):
    log = RunLog(tmp_path, loggers=["tensorboard"])
    log.resume(0)
    log.write("valid", 1, 1, {"a": math.nan, "b": math.inf, "c": 1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text)["a"] is None and json.loads(text)["b"] is None
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["b"]) and line["c"] == 1.0


def test_an_evaluation_adds_to_the_log(tmp_path):
    """Of an earlier checkpoint: what lies beyond it stays."""
    log = RunLog(tmp_path)
    log.resume(0)
    for step in (3, 6):
        log.write("valid", step, step // 3, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"torn')
    for loss in (2.0, 3.0):
        RunLog(tmp_path).write("test", 3, 2, {"loss": loss})
    lines = read_metrics(tmp_path)
    assert [(line["split"], line["step"]) for line in lines] == [
        ("valid", 3),
        ("valid", 6),
        ("test", 3),
    ]
    assert lines[-1]["loss"] == 3.0


def test_files_that_are_no_log(tmp_path):
    with pytest.raises(DataError, match="metrics.jsonl: cannot be read"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('[1]\n{"split": "train"}\nx\n')
    with pytest.raises(DataError, match="holds no line"):
        read_metrics(tmp_path)


def test_tensorboard_replaces_repeated_steps(tmp_path):
    for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 5))):
        log = RunLog(tmp_path, loggers=["tensorboard"])
        log.resume(start)
        for step in steps:
            log.write("valid", step, 1, {"loss": float(start)})
    got = [(x.step, x.value) for x in events(tmp_path).Scalars("valid/loss")]
    assert got == [(1, 0.0), (2, 0.0), (3, 2.0), (5, 2.0)]


def test_wandb_continues_its_run(tmp_path, wandb_runs):
    for step in (0, 5, 0):
        RunLog(tmp_path, loggers=["wandb"]).resume(step)
    first, second, third = (run.options["id"] for run in wandb_runs)
    assert first == second != third
    (tracker,) = make_trackers(
        [type(make_trackers(["wandb"])[0])(project="speech", name="mine")]
    )
    tracker.start(tmp_path, {}, 5)
    options = wandb_runs[-1].options
    assert (options["project"], options["name"]) == ("speech", "mine")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_stops_a_run_at_its_start(
    corpus, tmp_path, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as raised:
        make_brain("decoder", corpus, tmp_path, loggers=[name])
    command = f"pip install 'speechbrain_focalcodec[{name}]'"
    assert command in str(raised.value)


def test_wrong_options():
    with pytest.raises(ConfigError, match="'tensorbord' is unknown; choose"):
        make_trackers(["tensorbord"])
    with pytest.raises(ValueError, match="log_interval must be positive"):
        RunLog("folder", interval=0)
    assert make_trackers(None) == []


def test_long_audio_is_cut_for_trackers(tmp_path, wandb_runs):
    log = RunLog(tmp_path, loggers=["wandb"])
    log.resume(0)
    log.audio("utt", torch.zeros(11 * 8000), 8000, 1)
    assert wandb_runs[0].logged == [{"utt": ("audio", 80000, 8000), "step": 1}]
