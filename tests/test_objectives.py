"""Objectives: own ones, and stages that no YAML of ours has."""

import re
import sys
from pathlib import Path

import pytest
import speechbrain as sb
import test_training
import torch
from own_script import load_yaml
from test_training import CONFIG, fit, log_lines, make_brain

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.training.losses import LogMelLoss
from speechbrain_focalcodec.training.objectives import (
    Entropy,
    FeatureError,
    WaveformLosses,
)
from speechbrain_focalcodec.training.run_log import read_metrics

ROOT = Path(__file__).parents[1]
corpus = test_training.corpus  # a fixture


@pytest.fixture
def own_yaml(tmp_path, monkeypatch):
    """The objective that docs/training.md shows, and a YAML that lists it."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.S)
    [entry] = re.findall(r"```yaml\n(    - !new:level.*?)```", page, re.S)
    (tmp_path / "level.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (ROOT / "hparams" / "train" / "mini_decoder.yaml").read_text()
    text = text.replace("../model/", f"{ROOT}/hparams/model/")
    text = text.replace("\nobjectives:\n", f"\nobjectives:\n{entry}")
    path = tmp_path / "my_decoder.yaml"
    path.write_text(text)
    yield path
    sys.modules.pop("level", None)


def test_an_objective_of_the_users_own(corpus, tmp_path, own_yaml):
    hparams = load_yaml(own_yaml, {"data_folder": str(corpus)})
    objectives = hparams["objectives"]
    fit(*make_brain("decoder", corpus, tmp_path, objectives=objectives))
    lines = read_metrics(tmp_path)
    assert len(lines) > 2
    for line in lines:
        assert line["level"] > 0.01
        total = line["mel"] + line["stft"] + 10 * line["level"]
        assert line["loss"] == pytest.approx(total, rel=1e-4)


def make_perceptual(corpus, output, **options):
    """A quantizer that learns from waveforms, through a frozen decoder."""
    objectives = [
        FeatureError(0.1),
        Entropy(0.01),
        WaveformLosses({"mel": LogMelLoss(16000)}, {"mel": 1.0}),
    ]
    return make_brain(
        "quantizer", corpus, output, objectives=objectives, **options
    )


def test_waveforms_train_a_quantizer_through_a_frozen_decoder(corpus, tmp_path):
    torch.manual_seed(0)
    FocalCodec.from_config(CONFIG, name="tiny").save_pretrained(
        tmp_path / "model"
    )
    before = FocalCodec.from_pretrained(tmp_path / "model").state_dict()
    brain, counter, data = make_perceptual(
        corpus, tmp_path / "run", start_from=tmp_path / "model"
    )
    fit(brain, counter, data)
    changed = {
        name.partition(".")[0]
        for name, value in brain.codec.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"compressor", "decompressor"}
    line = log_lines(tmp_path / "run")[-1]
    for term in ("mse", "entropy", "mel", "code_usage"):
        assert f"train {term}" in line
    # The gradient of the waveforms alone reaches the compressor.
    brain.modules.zero_grad()
    [batch, *_] = brain.make_dataloader(data[1], sb.Stage.VALID)
    outputs = brain.compute_forward(batch, sb.Stage.VALID)
    outputs["estimate"].square().sum().backward()
    for weight in brain.modules.compressor.parameters():
        assert weight.grad.any()
    with pytest.raises(CheckpointError, match="no trained decoder"):
        make_perceptual(corpus, tmp_path / "none")


@pytest.mark.parametrize(
    "stage, needed",
    [
        ("quantizer", {"feats", "qfeats", "frames", "lats", "tokens"}),
        ("decoder", {"estimate", "target", "lengths"}),
    ],
)
def test_only_needed_outputs_are_computed(corpus, tmp_path, stage, needed):
    brain, _, data = make_brain(stage, corpus, tmp_path)
    [batch, *_] = brain.make_dataloader(data[1], sb.Stage.VALID)
    outputs = brain.compute_forward(batch, sb.Stage.VALID)
    assert outputs.keys() == needed | {"ids", "sig", "sig_lengths"}


def test_unknown_parts_and_outputs_are_named(corpus, tmp_path):
    with pytest.raises(ConfigError, match="trains: decodr; known are encoder,"):
        make_brain("decoder", corpus, tmp_path, trains=["decodr"])
    objective = FeatureError()
    objective.needs = {"feats", "words"}
    with pytest.raises(ConfigError, match="needs: feats, words; known are sig"):
        make_brain("quantizer", corpus, tmp_path, objectives=[objective])
