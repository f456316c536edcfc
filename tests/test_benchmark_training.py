"""The benchmark of training, on tiny models."""

import doctest
import importlib
import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from speechbrain_focalcodec.training.precision import emulates_bf16

ROOT = Path(__file__).parent.parent
# As for a script that is run: the benchmarks import each other.
sys.path.append(str(ROOT / "benchmarks"))
benchmark = importlib.import_module("training_speed")

TINY = ROOT / "tests" / "recipes" / "models"
SMALL = ("--batch-size", "2", "--segment", "0.4", "--steps", "1")


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(benchmark, "run_apart", lambda f, *x: f(*x))
    app = typer.Typer()
    app.command()(benchmark.training_speed)
    return lambda *options: CliRunner().invoke(app, [str(x) for x in options])


def measure(name, model=None, **options):
    setting = {"batch_size": 2, "segment": 0.4, "steps": 1, **options}
    model = model and TINY / f"{model}.yaml"
    path = benchmark.HPARAMS / f"{name}.yaml"
    return benchmark.measure(path, benchmark.Settings(model=model, **setting))


def test_a_table_of_stages(command, tmp_path):
    out = tmp_path / "out.json"
    yamls = "mini_quantizer,mini_stream_pretraining"
    result = command("--yamls", yamls, *SMALL, "--out", out)
    assert result.exit_code == 0, result.output
    rows = [x for x in result.stdout.splitlines() if x.startswith("| mini")]
    assert "| 2 x 0.40 s " in rows[0] and len(rows) == 2
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] > 0
    cost, other = found["results"]
    assert (cost["yaml"], other["yaml"]) == tuple(yamls.split(","))
    assert cost["model"] == "focalcodec_mini_50hz"
    assert cost["precision"] == ("fp32" if emulates_bf16() else "bf16")
    assert cost["peak_mib"] > 100 and cost["padding"] == 0
    assert cost["audio_per_second"] == pytest.approx(
        0.8 * cost["steps_per_second"]
    )


@pytest.mark.parametrize(
    "name, model",
    [
        ("quantizer_25hz", "offline_25hz"),
        ("stream_position", "causal_50hz"),
        ("stream_encoder", "causal_50hz"),
        ("stream_quantizer_65k", "causal_50hz"),
        ("stream_joint_2k", "causal_50hz"),
    ],
)
def test_stages_that_want_trained_weights(name, model):
    """They get random ones."""
    cost = measure(name, model)
    assert (cost.yaml, cost.model) == (name, f"tiny_{model}")
    assert 0 < cost.loss < 1e4
    assert cost.trained > 0 and cost.discriminator == 0


def test_whole_utterances_are_as_long_as_speech():
    cost = measure("stream_position", "causal_50hz", segment=None)
    first, second = benchmark.speech_lengths(2)
    mean = (first + second) / 2
    assert cost.item_seconds == pytest.approx(mean, abs=1e-3)
    assert cost.padding == pytest.approx(1 - mean / second, abs=1e-3)
    lengths = benchmark.speech_lengths(1000)
    assert sum(lengths) / 1000 == pytest.approx(5.6, abs=0.1)
    assert 1 <= min(lengths) and max(lengths) <= 25


def test_discriminators_count_apart():
    decoder, discriminator = torch.nn.Linear(3, 4), torch.nn.Linear(9, 2)
    decoder.bias.requires_grad_(False)
    modules = {"decoder": decoder, "discriminator": discriminator}
    counts = benchmark.count_parameters(SimpleNamespace(modules=modules))
    assert counts == (12, 20)
    cost = benchmark.Cost(
        *("decoder", "focalcodec_50hz", 13_000_000, 70_700_000, "fp32"),
        *(1, 0.44, 0.0, 0.5, 0.22, None, 1.0),
    )
    row = benchmark.table([cost]).splitlines()[-1]
    assert "| 13 + 70.7 " in row and "| 1 x 0.44 s " in row


def test_a_stage_that_runs_out_of_memory(command, monkeypatch):
    def killed(function, path, setting):
        if path.stem == "quantizer":
            raise BrokenProcessPool("terminated abruptly")
        return function(path, setting)

    monkeypatch.setattr(benchmark, "run_apart", killed)
    result = command("--yamls", "quantizer,mini_quantizer", *SMALL)
    assert result.exit_code == 1
    assert (
        "quantizer: ended, most likely because memory is short" in result.output
    )
    assert "| mini_quantizer |" in result.stdout


def test_wrong_options_are_named(command):
    assert "mini_quantizer" in command("--yamls", "nothing").output
    if not torch.cuda.is_available():
        result = command("--yamls", "mini_quantizer", "--device", "cuda")
        assert result.exit_code == 2 and "no GPU" in result.output


def test_make_runs_it():
    plan = subprocess.run(
        ["make", "--dry-run", "benchmark-training"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "benchmarks/training_speed.py" in plan.stdout


def test_examples():
    result = doctest.testmod(benchmark)
    assert result.attempted > 0 and result.failed == 0
