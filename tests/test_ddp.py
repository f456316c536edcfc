"""Training by torchrun on two processes is training on one, and it ends."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from make_corpus import make_corpus
from tiny_training import (
    ROOT,
    STREAMING,
    NoisyBrain,
    train,
    train_all,
    write_corpus,
)

from speechbrain_focalcodec.data.feature_reader import FeatureCache
from speechbrain_focalcodec.errors import CheckpointError, DataError
from speechbrain_focalcodec.training.run_log import read_metrics

STAGES = ["quantizer", "decoder", "end_to_end", *STREAMING]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Output of two processes."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "corpus").mkdir()
    write_corpus(out / "corpus")
    make_corpus("Folder", out / "folder", ["train-tiny", "dev-tiny"])
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    script = Path(__file__).with_name("tiny_training.py")
    subprocess.run(
        [sys.executable, *launcher, "--nproc-per-node=2", script, out],
        cwd=ROOT,
        check=True,
        timeout=180,
    )
    return out


@pytest.fixture(scope="module")
def lines(out):
    return torch.load(out / "lines.pt")


@pytest.fixture(scope="module")
def alone(out):
    """Losses and gradients of one process with the same global batch."""
    return train_all(out / "corpus", out / "alone")


@pytest.mark.parametrize("stage", STAGES)
def test_the_curve_is_that_of_one_process(lines, alone, stage):
    assert len(alone[stage]) == 2
    for one, two in zip(alone[stage], lines[stage], strict=True):
        assert one["meta"] == two["meta"]
        assert one.keys() == two.keys()
        for part in ("train", "valid"):
            for name, value in one[part].items():
                # A norm adds up what rounding leaves of each weight, and the
                # entropy multiplies what it leaves of latents by hundreds.
                rel = {"grad": 1e-3, "entr": 1e-4}.get(name[:4], 1e-5)
                assert two[part][name] == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_those_of_one_process(out, alone, stage):
    """Of each parameter that is trained."""
    one, two = (
        torch.load(folder / stage / "grads.pt")
        for folder in (out / "alone", out)
    )
    assert one and one.keys() == two.keys()
    total = torch.nn.utils.get_total_norm(one.values())
    assert total > 0
    for name, grad in one.items():
        # Some are zero but for rounding: a softmax forgets what all keys add.
        error = (two[name] - grad).norm()
        assert error <= 1e-4 * grad.norm() + 1e-6 * total, name


def test_a_resumed_run_continues_the_same_curve(lines):
    """Killed within an epoch; each process resumes its random numbers."""
    assert len(lines["parts"]) == 2
    assert lines["parts"] == lines["whole"]


def test_each_process_draws_its_own_numbers(out):
    [path, *_] = sorted((out / "whole" / "save").glob("*/random_state.ckpt"))
    one, two = torch.load(path)
    for kind in ("python", "numpy"):
        assert one[kind] != two[kind]
    assert not torch.equal(one["torch"], two["torch"])


def test_fewer_processes_resume_at_the_end_of_an_epoch_alone(out):
    corpus = out / "corpus"
    with pytest.raises(CheckpointError, match=r"by 2 process.*resume with 2"):
        train(NoisyBrain, corpus, out / "left")
    [line] = train(NoisyBrain, corpus, out / "whole", epochs=3)
    assert line["meta"]["epoch"] == 3


def test_a_recipe_ends(out):
    """The command, with a feature cache of fewer shards than processes."""
    run = out / "recipe_debug"
    *_, tested, evaluated = (run / "train_log.txt").read_text().splitlines()
    assert tested.startswith("Epoch loaded: 2 - test loss: ")
    assert evaluated.startswith("Epoch evaluated: 2, utterances: 2 - test mel")
    splits = [line["split"] for line in read_metrics(run)]
    assert splits.count("valid") == 2
    assert splits[-2:] == ["test", "evaluation"]
    assert (run / "evaluation_debug" / "summary.md").is_file()
    assert {"config.json", "log.txt", "samples", "save"} <= {
        path.name for path in run.iterdir()
    }
    cache = FeatureCache(out / "recipe" / "features" / "train")
    assert len(cache) == 6


def test_an_error_on_the_main_process_stops_all(lines):
    failures = ["DataError: torn", "RuntimeError: .* stopped: DataError: torn"]
    for failure, expected in zip(lines["failures"], failures, strict=True):
        assert re.match(expected, failure)


def test_evaluation_alone_and_a_debug_run_end(lines):
    [line] = lines["test_only"]
    best = min(x["valid"]["loss"] for x in lines["whole"])
    assert line["test"]["loss"] == pytest.approx(best, rel=1e-6)
    *epochs, line = lines["debug"]
    assert len(epochs) == 2 and "loss" in line["test"]


def test_an_empty_training_set_is_an_error(out):
    with pytest.raises(DataError, match="8 utterance.*no batch of 16"):
        train(NoisyBrain, out / "corpus", out / "none", batch_size=16)
