"""Training by torchrun on two processes is training on one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import NoisyBrain, train, train_all, write_corpus

from speechbrain_focalcodec.errors import CheckpointError


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """What two processes leave."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "corpus").mkdir()
    write_corpus(out / "corpus")
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    script = Path(__file__).with_name("tiny_training.py")
    subprocess.run(
        [sys.executable, *launcher, "--nproc-per-node=2", script, out],
        check=True,
        timeout=300,
    )
    return out


@pytest.fixture(scope="module")
def lines(out):
    return torch.load(out / "lines.pt")


@pytest.fixture(scope="module")
def alone(out):
    """What one process has with the same global batch."""
    return train_all(out / "corpus", out / "alone")


@pytest.mark.parametrize("stage", ["quantizer", "decoder"])
def test_the_curve_is_that_of_one_process(lines, alone, stage):
    assert len(alone[stage]) == 2
    for one, two in zip(alone[stage], lines[stage], strict=True):
        assert one["meta"] == two["meta"]
        assert one.keys() == two.keys()
        for part in ("train", "valid"):
            norms = {name for name in one[part] if name.startswith("grad")}
            for name, value in one[part].items():
                # A norm adds up what rounding leaves of each weight.
                rel = 1e-3 if name in norms else 1e-5
                assert two[part][name] == pytest.approx(value, rel=rel), name


def test_a_resumed_run_continues_the_same_curve(lines):
    """Killed within an epoch; each process goes on with its own noise."""
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
