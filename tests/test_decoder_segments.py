"""Decoder stages: segments after the encoder, cached features, padding."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from own_script import fit_and_evaluate, load_yaml
from small_discriminator import Discriminator

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.errors import ConfigError, DataError
from speechbrain_focalcodec.training.codec_brain import CodecBrain
from speechbrain_focalcodec.training.losses import (
    LogMelLoss,
    MultiResolutionSTFTLoss,
)
from speechbrain_focalcodec.training.objectives import Adversarial

ROOT = Path(__file__).parents[1]
OFFLINE = ROOT / "tests" / "parity" / "offline_50hz"
STAGES = {"decoder": "offline_50hz", "stream_decoder": "causal_50hz"}
# Some are shorter than a segment of 20 frames (0.4 s).
SECONDS = (0.3, 0.7, 0.9, 0.5, 0.8, 0.35)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Tones at 24 kHz; train.json and valid.json."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    entries = {}
    for i, seconds in enumerate(SECONDS):
        time = np.arange(round(24000 * seconds)) / 24000
        sig = 0.3 * np.sin(2 * np.pi * (150 + 60 * i) * time)
        sig += 0.02 * generator.standard_normal(len(time))
        soundfile.write(folder / f"utt{i}.wav", sig, 24000)
        entries[f"utt{i}"] = {
            "wav": f"{{data_root}}/utt{i}.wav",
            "num_samples": len(time),
            "sample_rate": 24000,
            "duration": seconds,
        }
    write_manifest(folder / "save" / "train.json", entries)
    write_manifest(folder / "save" / "valid.json", entries)
    return folder


def train(stage, corpus, output, **overrides):
    """Run a full-size YAML on a tiny model; its lines of metrics.jsonl."""
    model = ROOT / "tests" / "recipes" / "models" / f"{STAGES[stage]}.yaml"
    overrides = {
        "data_folder": corpus,
        "output_folder": output,
        "save_folder": corpus / "save",
        "model": f"!include:{model}",
        "encoder_source": OFFLINE,
        "modules": "null",
        "number_of_epochs": 3,
        "num_samples": 0,
        "num_workers": 0,
        "batch_size": 3,
        "segment_frames": 20,
        "lr": 0.001,
        **overrides,
    }
    text = "".join(f"{key}: {value}\n" for key, value in overrides.items())
    hparams = load_yaml(ROOT / "hparams" / "train" / f"{stage}.yaml", text)
    hparams["checkpointer"] = None
    torch.manual_seed(1)
    hparams["modules"] = {"discriminator": Discriminator()}
    hparams["test_splits"] = []
    output.mkdir(parents=True, exist_ok=True)
    fit_and_evaluate(hparams, {"device": "cpu", "noprogressbar": True})
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("stage", STAGES)
def test_cached_features_give_the_same_losses(
    corpus, tmp_path, stage, monkeypatch
):
    plain = train(stage, corpus, tmp_path / "plain")
    options = {"feature_cache": tmp_path / "cache"}
    cached = train(stage, corpus, tmp_path / "cached", **options)
    lines = zip(plain, cached, strict=True)
    terms = ("mel", "adversarial", "feature_matching", "discriminator", "loss")
    for found, wanted in lines:
        assert found["split"] == wanted["split"]
        for term in terms & wanted.keys():
            assert found[term] == pytest.approx(wanted[term], rel=0.01), term
    assert plain != cached  # features are rounded
    losses = [line["mel"] for line in plain if line["split"] == "train_epoch"]
    # It learns: else equal losses would mean little.
    assert losses[2] < 0.97 * losses[0]
    # What was made is opened; a cache of another encoder refuses.
    monkeypatch.setattr(FocalCodec, "sig_to_feats", None)
    again = train(stage, corpus, tmp_path / "again", **options)
    assert again[-1]["loss"] == cached[-1]["loss"]
    monkeypatch.undo()
    other = OFFLINE.with_name("offline_25hz")
    with pytest.raises(DataError, match="was made for another encoder"):
        train(
            stage, corpus, tmp_path / "other", **options, encoder_source=other
        )


def test_only_the_frames_of_the_segment_are_read(corpus, tmp_path, monkeypatch):
    sizes = []
    forward = CodecBrain.compute_forward

    def spy(brain, batch, stage):
        if stage == sb.Stage.TRAIN:
            sizes.append((batch.feats.data.shape[1], batch.sig.data.shape[1]))
        return forward(brain, batch, stage)

    monkeypatch.setattr(CodecBrain, "compute_forward", spy)
    train("decoder", corpus, tmp_path, feature_cache=tmp_path / "cache")
    assert len(sizes) == 6
    assert all(x <= 20 and sig <= 20 * 320 for x, sig in sizes)


def test_what_cannot_be_trained_on_is_named(corpus, tmp_path):
    with pytest.raises(DataError, match="segment_frames is 99, .* 44 frames"):
        train("decoder", corpus, tmp_path, segment_frames=99)
    with pytest.raises(ConfigError, match="whole waveforms to quantize"):
        train(
            "decoder",
            corpus,
            tmp_path,
            feature_cache=tmp_path / "cache",
            dequantized=True,
            start_from=OFFLINE,
        )
    # A causal encoder where one of full context is needed.
    causal = OFFLINE.with_name("causal_50hz")
    for stage in STAGES:
        with pytest.raises(ConfigError, match="causal True, the codec needs F"):
            train(stage, corpus, tmp_path, encoder_source=causal)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("loss", [LogMelLoss(16000), MultiResolutionSTFTLoss()])
def test_padding_does_not_count_in_spectral_losses(loss):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 4000, generator=generator)
    alone = loss(x[:, :3000], y[:, :3000])
    lengths = torch.tensor([3000])
    padded = [
        torch.nn.functional.pad(sig[:, :3000], (0, 5000)) for sig in (x, y)
    ]
    torch.testing.assert_close(loss(*padded, lengths=lengths), alone)
    # Without their lengths, zeros would count as speech.
    assert loss(*padded) < 0.8 * alone


def test_padding_does_not_count_for_the_discriminator():
    torch.manual_seed(0)
    discriminator = torch.nn.Module()
    discriminator.forward = lambda x: ([x[:, 0]], [[x.unflatten(1, (1, 1))]])
    found = {}
    adversarial = Adversarial(None)
    adversarial.brain = SimpleNamespace(
        modules=SimpleNamespace(discriminator=discriminator),
        record=lambda **terms: found.update(
            {name: float(value) for name, value in terms.items()}
        ),
    )
    estimate, target = torch.randn(2, 1, 800)
    lengths = torch.tensor([800])
    predictions = {"estimate": estimate, "target": target, "lengths": lengths}
    alone = adversarial.opposing_loss(dict(predictions))
    expected = dict(found)
    padded = {
        name: torch.nn.functional.pad(value, (0, 3200))
        for name, value in predictions.items()
        if name != "lengths"
    }
    loss = adversarial.opposing_loss(padded | {"lengths": lengths})
    torch.testing.assert_close(loss, alone)
    assert found == pytest.approx(expected)
