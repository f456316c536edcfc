"""The stages of a streaming model, and where their weights come from."""

import json
import re
from pathlib import Path

import pytest
import test_training
import torch
from causal_codecs import make_codec
from test_training import (
    Discriminator,
    fit,
    log_lines,
    make_brain,
    valid_losses,
)
from typer.testing import CliRunner

from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.training.export import export_runs
from speechbrain_focalcodec.training.objectives.gaps import cut_gaps
from speechbrain_focalcodec.training.sources import find_sources, load_parts

corpus = test_training.corpus  # a fixture
CAUSAL = "tests/parity/causal_50hz"
OFFLINE = "tests/parity/offline_50hz"
EPOCHS = 3


def config_of(model):
    return json.loads(Path(model, "config.json").read_text())


def run(
    stage,
    corpus,
    output,
    model=CAUSAL,
    modules=None,
    **options,
):
    """Train a stage of a tiny model."""
    hparams = {
        "codec": FocalCodec.from_config(config_of(model), name="tiny"),
        "encoder_source": OFFLINE,
        "epochs": EPOCHS,
        "first_layer_weight": 0.5,
        "last_layer_weight": 1.0,
        "gap_samples": 400,
        "gap_share": 0.3,
        "mel": LogMel(n_mels=20),
        **options,
    }
    made = make_brain(
        stage, corpus, output, modules=modules, lr=2e-3, **hparams
    )
    fit(*made)
    return made[0]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """The five stages of a tiny streaming model, as their folders."""
    folder = tmp_path_factory.mktemp("runs")
    stages = [
        ("decoder", "decoder", []),
        ("position", "position", []),
        ("encoder", "encoder", ["position"]),
        ("quantizer", "quantizer", ["encoder", "decoder"]),
        ("joint", "joint", ["encoder", "quantizer", "decoder"]),
    ]
    brains = {}
    for name, stage, earlier in stages:
        brains[name] = run(
            stage,
            corpus,
            folder / name,
            start_from=[folder / other for other in earlier],
            refine=name != "quantizer",
            num_samples=int(name in ("encoder", "joint")),
        )
    return folder, brains


@pytest.mark.parametrize(
    "name", ["decoder", "position", "encoder", "quantizer", "joint"]
)
def test_each_stage_lowers_its_validation_loss(runs, name):
    folder, brains = runs
    losses = valid_losses(folder / name)
    assert len(losses) == EPOCHS
    assert losses[-1] < 0.98 * losses[0]
    line = log_lines(folder / name)[-1]
    assert ("valid share" in line) == (name in ("position", "encoder"))
    samples = folder / name / "samples" / f"epoch_{EPOCHS:04d}"
    drawn = name in ("encoder", "joint")
    assert (samples / "utt0.png").is_file() == drawn
    assert (samples / "utt0_reconstruction.wav").is_file() == (name == "joint")
    if name == "encoder":
        assert "mse_1" in line and "mse_2" in line


def test_frozen_parts_do_not_change(runs):
    folder, brains = runs
    position = find_sources(folder / "position")[0].weights(
        "positional_embedding"
    )
    teacher = FocalCodec.from_pretrained(OFFLINE).encoder.state_dict()
    for name in ("encoder", "joint"):
        encoder = brains[name].codec.encoder.state_dict()
        for key, value in position.items():
            kept = encoder[f"encoder.positional_embedding.{key}"]
            assert torch.equal(kept, value)
        key = "encoder.relative_embedding.weight"
        assert torch.equal(encoder[key], teacher[key])
        assert not torch.equal(
            encoder["feature_proj.weight"], teacher["feature_proj.weight"]
        )
        for key, value in brains[name].teacher.state_dict().items():
            assert torch.equal(value, teacher[key]), key


def test_the_quantizer_stage_has_no_refiner(runs):
    folder, _ = runs
    config = json.loads((folder / "quantizer" / "config.json").read_text())
    assert config["decompressor_config"]["lookahead_size"] == 0
    weights = find_sources(folder / "quantizer")[0].weights("decompressor")
    assert not any("refiner" in name for name in weights)
    config = json.loads((folder / "joint" / "config.json").read_text())
    assert config["decompressor_config"]["lookahead_size"] == 3


def test_the_joint_stage_starts_where_the_quantizer_ended(runs):
    folder, brains = runs
    codec = FocalCodec.from_config(config_of(CAUSAL))
    sources = find_sources([folder / "encoder", folder / "quantizer"])
    load_parts(codec, sources)
    before = brains["quantizer"].codec.eval()
    best = find_sources(folder / "quantizer")[0].weights("decompressor")
    before.decompressor.load_state_dict(best)
    codes = torch.randn(1, 11, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            codec.decompressor(codes), before.decompressor(codes)
        )


def test_the_export_streams(runs, tmp_path):
    folder, brains = runs
    # Later runs win: the joint stage's parts take the earlier ones' place.
    names = [folder / name for name in ("quantizer", "decoder", "joint")]
    codec = export_runs(tmp_path / "model", names)
    assert codec.causal and codec.sample_rate_output == 24000
    joint = find_sources(folder / "joint")[0]
    for part in ("encoder", "compressor", "decompressor"):
        got = getattr(codec, part).state_dict()
        for key, value in joint.weights(part).items():
            assert torch.equal(got[key], value), key
    sig = torch.randn(1, 4000)
    assert codec.resynthesize(sig).shape == (1, 6000)


def test_stages_without_required_parts(runs, corpus, tmp_path):
    folder, _ = runs

    def fails(error, message, stage, **options):
        with pytest.raises(error, match=message):
            run(stage, corpus, tmp_path / "run", **options)

    fails(CheckpointError, "no trained positional_emb", "encoder")
    fails(
        CheckpointError,
        "no trained encoder",
        "quantizer",
        start_from=[folder / "position"],
    )
    fails(
        CheckpointError,
        "no trained compressor and no decompressor",
        "joint",
        start_from=[folder / "encoder"],
    )
    fails(
        CheckpointError,
        "no trained encoder and no compressor",
        "decoder",
        dequantized=True,
    )
    fails(ConfigError, "trains a causal WavLM", "position", model=OFFLINE)
    fails(ConfigError, "encoder_source", "position", encoder_source=None)
    fails(
        ConfigError,
        "encoder_source",
        "quantizer",
        model=OFFLINE,
        encoder_source=None,
    )
    fails(
        CheckpointError,
        "causal",
        "position",
        encoder_source=folder / "encoder",
    )
    head = {"head": torch.nn.Linear(1, 1)}
    fails(ConfigError, "causal to False", "pretraining", modules=head)
    fails(ConfigError, "modules must have head", "pretraining")
    fails(
        ConfigError, "freeze: the codec has no 'comp'", "position",
        freeze=["comp"],
    )  # fmt: skip
    # One name, as the command line gives it.
    fails(ConfigError, "the codec has no 'comp'", "position", freeze="comp")
    fails(
        ConfigError,
        "nothing to train; it trains compressor, decompressor",
        "quantizer",
        model=OFFLINE,
        freeze=["compressor", "decompressor"],
    )
    fails(
        ConfigError,
        "output, which has 24000 Hz",
        "decoder",
        sample_rate=16000,
    )
    fails(
        ConfigError, "input, which has 16000 Hz", "position",
        sample_rate=24000,
    )  # fmt: skip
    # It has the form of a hub repository, but is a slip.
    fails(
        CheckpointError,
        "no such folder in tests",
        "decoder",
        start_from="tests/decodr",
    )


@pytest.mark.parametrize("stage", ["decoder", "quantizer"])
def test_stages_without_teacher(corpus, tmp_path, stage):
    brain, *_ = make_brain(
        stage,
        corpus,
        tmp_path,
        codec=FocalCodec.from_config(config_of(CAUSAL), name="tiny"),
        start_from=CAUSAL,
        dequantized=True,
        freeze=None,
        sample_rate=24000 if stage == "decoder" else 16000,
    )
    assert brain.teacher is None
    weights = find_sources(CAUSAL)[0].weights("encoder")
    for key, value in brain.codec.encoder.state_dict().items():
        assert torch.equal(value, weights[key])


def test_runs_of_another_model_are_refused(runs):
    folder, _ = runs
    config = config_of(CAUSAL)
    other = json.loads(json.dumps(config))
    other["compressor_config"]["window_size"] = 16
    with pytest.raises(CheckpointError, match="compressor with window_size 32"):
        load_parts(
            FocalCodec.from_config(other), find_sources(folder / "quantizer")
        )
    other = json.loads(json.dumps(config))
    other["encoder_config"]["max_distance"] = 80
    with pytest.raises(CheckpointError, match="trained on an encoder with max"):
        load_parts(
            FocalCodec.from_config(other), find_sources(folder / "quantizer")
        )
    # A decoder serves models of other token rates.
    offline = FocalCodec.from_config(config_of("tests/parity/offline_25hz"))
    load_parts(offline, find_sources(OFFLINE)[:0])
    other = json.loads(json.dumps(config))
    other["compressor_config"]["downscale_factors"] = [2, 1, 1]
    other["decompressor_config"]["upscale_factors"] = [1, 1, 2]
    load_parts(FocalCodec.from_config(other), find_sources(folder / "decoder"))


def test_a_decoder_continues_with_another_fade(corpus, tmp_path, caplog):
    old, new = make_codec("vocos"), make_codec("fading")
    old.save_pretrained(tmp_path / "old")
    changed = new.config.to_dict()
    for role in ("compressor", "decoder"):
        # Of the weights before they are loaded.
        changed[f"{role}_config"]["layerscale_init"] = 0.7
    brain = run(
        "end_to_end",
        corpus,
        tmp_path / "run",
        codec=FocalCodec.from_config(changed),
        start_from=tmp_path / "old",
        loss_weights={"mel": 1.0, "stft": 1.0, "feats": 1.0},
        epochs=1,
    )
    told = [x.getMessage() for x in caplog.records if "fade" in x.getMessage()]
    assert len(told) == 1
    assert re.search(r"old: its decoder with fade 0;.*model's, 60", told[0])
    assert brain.codec.decoder.head.fade == 60
    names = [tmp_path / "old", tmp_path / "run"]
    exported = export_runs(tmp_path / "new", names)
    assert exported.config.decoder_config.fade == 60
    # Before a step was taken: the old weights, faded.
    load_parts(new, find_sources(tmp_path / "old"))
    sig = torch.randn(1, 13 * 320)
    faded, plain = new.resynthesize(sig), old.resynthesize(sig)
    assert not torch.equal(faded, plain)
    faded, plain = (x.unflatten(1, (-1, 320))[..., 60:] for x in (faded, plain))
    torch.testing.assert_close(faded, plain)


def test_options_of_causal_parts_are_ignored_in_offline_models():
    config = config_of(OFFLINE)
    config["decompressor_config"]["last_window_size"] = 7
    config["compressor_config"]["window_size"] = 7
    load_parts(FocalCodec.from_config(config), find_sources(OFFLINE))


def test_an_encoder_can_be_pretrained(corpus, tmp_path):
    model = config_of(OFFLINE)
    head = torch.nn.Linear(model["encoder_config"]["dim"], 20)
    run(
        "pretraining",
        corpus,
        tmp_path / "encoder",
        OFFLINE,
        {"head": head},
        encoder_source=None,
    )
    losses = valid_losses(tmp_path / "encoder")
    assert losses[-1] < 0.9 * losses[0]
    brain = run(
        "position",
        corpus,
        tmp_path / "position",
        encoder_source=tmp_path / "encoder",
        epochs=1,
    )
    weights = find_sources(tmp_path / "encoder")[0].weights("encoder")
    for key, value in brain.teacher.state_dict().items():
        assert torch.equal(value, weights[key])


def test_gaps():
    torch.manual_seed(0)
    sig = cut_gaps(torch.ones(3, 8000), 400, 0.3)
    for row in sig:
        assert 0.1 < (row == 0).float().mean() <= 0.3
    assert not torch.equal(sig[0], sig[1])


def test_fine_tuning_with_the_discriminator(corpus, tmp_path):
    """A model with its discriminator; parts of it stay as they are."""
    torch.manual_seed(0)
    model = config_of(OFFLINE)
    first = run(
        "decoder",
        corpus,
        tmp_path / "first",
        OFFLINE,
        {"discriminator": Discriminator()},
        adversarial=True,
        epochs=1,
    )
    runner = CliRunner()
    arguments = ["export", tmp_path / "model", OFFLINE, tmp_path / "first"]
    result = runner.invoke(app, [*map(str, arguments), "--discriminator"])
    assert result.exit_code == 0, result.output
    exported = tmp_path / "model" / "discriminator.safetensors"
    assert exported.is_file()
    # Who loads the model needs no discriminator.
    codec = FocalCodec.from_pretrained(tmp_path / "model")
    got = codec.decoder.state_dict()
    for key, value in first.codec.decoder.state_dict().items():
        assert torch.equal(value, got[key])

    again = make_brain(
        "decoder",
        corpus,
        tmp_path / "second",
        adversarial=True,
        modules={"discriminator": Discriminator()},
        codec=FocalCodec.from_config(model),
        encoder_source=None,
        start_from=[tmp_path / "model"],
        freeze=["decoder.backbone"],
        epochs=1,
    )
    for key, value in first.modules.discriminator.state_dict().items():
        loaded = again[0].modules.discriminator.state_dict()[key]
        assert torch.equal(loaded, value)
    fit(*again)
    for key, value in again[0].codec.decoder.state_dict().items():
        same = torch.equal(value, got[key])
        assert same == key.startswith("backbone."), key
    result = runner.invoke(
        app, ["export", str(tmp_path / "x"), OFFLINE, "--discriminator"]
    )
    assert result.exit_code == 1
    assert not (tmp_path / "x").exists()


def test_a_compiled_discriminator_keeps_its_names(
    corpus, tmp_path, monkeypatch
):
    """A compiled run resumes without compilation."""

    class Compiled(torch.nn.Module):
        def __init__(self, module, **options):
            super().__init__()
            self._orig_mod = module

        def forward(self, x):
            return self._orig_mod(x)

    monkeypatch.setattr(torch, "compile", Compiled)
    made = make_brain(
        "decoder",
        corpus,
        tmp_path,
        adversarial=True,
        run_opts={"compile_module_keys": ["discriminator"], "compile": True},
        epochs=1,
    )
    fit(*made)
    assert isinstance(made[0].modules.discriminator, Compiled)
    [source] = find_sources(tmp_path)
    names = Discriminator().state_dict().keys()
    assert source.weights("discriminator").keys() == names


def test_scores_of_low_precision_are_summed_in_full(
    corpus, tmp_path, even_if_emulated
):
    """In fp16 the scaled gradient would be infinite."""
    brain, *_ = make_brain(
        "decoder",
        corpus,
        tmp_path,
        adversarial=True,
        run_opts={"precision": "bf16"},
    )
    # Scores near zero: 1 - score is 1 with the digits of bfloat16.
    torch.nn.init.constant_(brain.modules.discriminator.score.weight, 0.0)
    torch.nn.init.constant_(brain.modules.discriminator.score.bias, 1e-3)
    sig = torch.randn(2, 3200)
    with brain.training_ctx:
        loss = brain.opponent.opposing_loss({"estimate": sig, "target": sig})
        scores, _ = brain.modules.discriminator(sig[:, None])
    assert scores[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    means = brain._averages.means()
    assert means["score_real"] == pytest.approx(1e-3, rel=1e-2)


def test_a_new_discriminator_warms_up(corpus, tmp_path):
    made = make_brain(
        "decoder",
        corpus,
        tmp_path,
        adversarial=True,
        epochs=1,
        discriminator_warmup=2,
    )
    brain, seen = made[0], []
    original = brain.fit_batch

    def weights():
        return [
            torch.cat([p.detach().ravel() for p in module.parameters()])
            for module in (brain.modules.decoder, brain.modules.discriminator)
        ]

    def spy(batch):
        before = weights()
        loss = original(batch)
        assert loss.isfinite()
        pairs = zip(before, weights(), strict=True)
        seen.append([not torch.equal(*pair) for pair in pairs])
        return loss

    brain.fit_batch = spy
    fit(*made)
    assert seen == [[False, True], [False, True], [True, True]]
    assert brain.optimizer_step == 3
