"""The Brains: learning, safety nets, resuming, logs and export."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from small_discriminator import Discriminator
from speechbrain.lobes.models.HifiGAN import HifiganDiscriminator
from speechbrain.nnet.schedulers import (
    NewBobScheduler,
    StepScheduler,
    WarmCoolDecayLRSchedule,
)
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger
from training_stages import compose

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.training.checkpointing import AtomicCheckpointer
from speechbrain_focalcodec.training.codec_brain import CodecBrain
from speechbrain_focalcodec.training.export import export_runs
from speechbrain_focalcodec.training.losses import (
    LogMelLoss,
    MultiResolutionSTFTLoss,
    masked_mse,
)
from speechbrain_focalcodec.training.sources import find_sources, load_parts

CONFIG = {
    "encoder_name": "LogMel",
    "encoder_config": {"n_mels": 20},
    "compressor_config": {
        "input_dim": 20,
        "output_dim": 6,
        "hidden_dims": [16],
        "downscale_factors": [1],
    },
    "quantizer_config": {"codebook_size": 64},
    "decompressor_config": {
        "input_dim": 6,
        "output_dim": 20,
        "hidden_dims": [16],
        "upscale_factors": [1],
    },
    "decoder_config": {
        "input_dim": 20,
        "num_layers": 1,
        "dim": 16,
        "ffn_dim": 32,
    },
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    entries = {}
    for i in range(6):
        time = np.arange(8000 + 700 * i) / 16000
        sig = 0.3 * np.sin(2 * np.pi * (150 + 60 * i) * time)
        sig += 0.02 * generator.standard_normal(len(time))
        soundfile.write(folder / f"utt{i}.wav", sig, 16000)
        entries[f"utt{i}"] = {
            "wav": f"{{data_root}}/utt{i}.wav",
            "num_samples": len(time),
            "sample_rate": 16000,
            "duration": len(time) / 16000,
        }
    write_manifest(folder / "train.json", entries)
    return folder


def make_brain(
    stage,
    corpus,
    output,
    adversarial=False,
    run_opts=None,
    modules=None,
    lr=1e-2,
    **overrides,
):
    """A Brain as the recipes make it, and its datasets."""
    brain_class = CodecBrain
    if isinstance(stage, type):
        brain_class, stage = stage, stage.stage
    sb.utils.seed.seed_everything(1)
    torch.manual_seed(1)
    counter = EpochCounter(overrides.pop("epochs", 2))
    segment = 3200 if stage in ("decoder", "end_to_end") else None
    data = [
        make_dataset(corpus / "train.json", corpus, 16000, samples)
        for samples in (segment, None)
    ]
    hparams = {
        "codec": FocalCodec.from_config(CONFIG),
        "output_folder": str(output),
        "train_logger": FileTrainLogger(str(output / "train_log.txt")),
        "epoch_counter": counter,
        # Drawing takes longer than training.
        "num_samples": 0,
        "losses": {"mel": LogMelLoss(16000), "stft": MultiResolutionSTFTLoss()},
        "loss_weights": {
            "mel": 1.0,
            "stft": 1.0,
            "adversarial": 1.0,
            "feature_matching": 2.0,
            "feats": 1.0,
        },
        "discriminator_opt_class": lambda x: torch.optim.AdamW(x, 1e-3),
        "encoder_source": None,
        "start_from": [],
        "freeze": [],
        "dequantized": False,
        "refine": True,
        "entropy_weight": 0.1,
        "diversity_weight": 1.0,
        "inverse_temperature": 100.0,
        "max_grad_norm": 5.0,
        **overrides,
    }
    hparams = compose(stage, hparams) | hparams
    output.mkdir(parents=True, exist_ok=True)
    checkpointer = AtomicCheckpointer(output / "save", {"counter": counter})
    if isinstance(hparams.get("lr_annealing"), NewBobScheduler):
        checkpointer.add_recoverable("lr_annealing", hparams["lr_annealing"])
    if modules is None:
        modules = {"discriminator": Discriminator()} if adversarial else {}
    brain = brain_class(
        modules,
        lambda x: torch.optim.AdamW(x, lr),
        hparams,
        {"device": "cpu", "noprogressbar": True, **(run_opts or {})},
        checkpointer,
    )
    return brain, counter, data


def fit(brain, counter, data):
    brain.fit(
        counter,
        *data,
        train_loader_kwargs={"batch_size": 2, "shuffle": True},
        valid_loader_kwargs={"batch_size": 4},
    )


def log_lines(output: Path) -> list[str]:
    return (output / "train_log.txt").read_text().splitlines()


def valid_losses(output: Path) -> list[float]:
    return [
        float(line.split("valid loss: ")[1].split(",")[0])
        for line in log_lines(output)
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "stage,adversarial",
    [("decoder", False), ("decoder", True), ("quantizer", False)],
)
def test_learns_logs_and_saves(
    corpus, tmp_path, stage, adversarial, precision, even_if_emulated
):
    run = make_brain(
        stage,
        corpus,
        tmp_path,
        adversarial,
        {"precision": precision},
        epochs=4,
        num_samples=1,
    )
    frozen = {
        name: value.clone()
        for name, value in run[0].codec.state_dict().items()
        if not name.startswith(tuple(run[0].trains))
    }
    assert frozen
    fit(*run)
    losses = valid_losses(tmp_path)
    assert len(losses) == 4
    assert losses[-1] < 0.95 * losses[0]
    for name, value in frozen.items():
        assert torch.equal(run[0].codec.state_dict()[name], value), name
    assert run[0].optimizer_step == 12
    assert (tmp_path / "config.json").is_file()
    line = log_lines(tmp_path)[-1]
    if adversarial:
        assert "score_real" in line and "feature_matching" in line
    if stage == "quantizer":
        assert "valid code_usage" in line and "valid code_entropy" in line
        picture = tmp_path / "samples" / "epoch_0004" / "utt0.png"
        assert picture.read_bytes()[1:4] == b"PNG"
    else:
        samples = tmp_path / "samples" / "epoch_0004"
        names = sorted(path.name for path in samples.iterdir())
        assert names == [
            "utt0.png",
            "utt0_original.wav",
            "utt0_reconstruction.wav",
        ]
        info = soundfile.info(samples / "utt0_reconstruction.wav")
        assert (info.samplerate, info.frames) == (16000, 8000)


def test_a_step_with_the_discriminator_of_hifi_gan(corpus, tmp_path):
    """At full size, which the recipes' tests leave out."""
    brain, _, data = make_brain(
        "decoder",
        corpus,
        tmp_path,
        modules={"discriminator": HifiganDiscriminator()},
        # Its steps are as long for the smallest gradients.
        discriminator_opt_class=lambda x: torch.optim.Adam(x, 1e-3),
    )
    brain.init_optimizers()
    parts = brain.modules.decoder, brain.modules.discriminator
    before = [[p.detach().clone() for p in x.parameters()] for x in parts]
    [batch, *_] = brain.make_dataloader(data[0], sb.Stage.TRAIN)
    brain.modules.train()
    assert brain.fit_batch(batch).isfinite()
    for part, old in zip(parts, before, strict=True):
        for value, was in zip(part.parameters(), old, strict=True):
            # The last biases' gradients of real and fake cancel out at first.
            assert value.ndim == 1 or not torch.equal(value, was)
    means = brain._averages.means()
    assert means["score_real"] != means["score_fake"]
    assert means["feature_matching"] > 0


@pytest.mark.parametrize(
    "stage,adversarial",
    [("decoder", True), ("quantizer", False)],
)
@pytest.mark.parametrize("annealing", ["newbob", "step"])
def test_resumed_run_continues_the_same_curve(
    corpus, tmp_path, stage, adversarial, annealing
):
    """A run stopped after two epochs, and at once in the third."""

    def anneal():
        if annealing == "newbob":
            return NewBobScheduler(1e-2, 0.5, 0.5)
        return StepScheduler(1e-2, decay_factor=0.5, decay_drop=1)

    def run(output, epochs):
        made = make_brain(
            stage,
            corpus,
            output,
            adversarial,
            epochs=epochs,
            lr_annealing=anneal(),
        )
        return made

    fit(*run(tmp_path / "whole", 4))
    fit(*run(tmp_path / "parts", 2))
    brain, counter, data = run(tmp_path / "parts", 4)
    original = brain.fit_batch

    def killed(batch):
        if brain.step == 2:
            raise KeyboardInterrupt
        return original(batch)

    brain.fit_batch = killed
    with pytest.raises(KeyboardInterrupt):
        fit(brain, counter, data)
    fit(*run(tmp_path / "parts", 4))
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")


@pytest.mark.parametrize("files", [0, 2, 5])
def test_a_run_killed_while_saving_resumes(corpus, tmp_path, files):
    """Killed in the second epoch's checkpoint, after so many files."""
    fit(*make_brain("decoder", corpus, tmp_path / "whole"))
    brain, counter, data = make_brain("decoder", corpus, tmp_path / "parts")
    recoverables = brain.checkpointer.recoverables

    class Killed(dict):
        def items(self):
            for i, item in enumerate(super().items()):
                if counter.current == 2 and i == files:
                    raise KeyboardInterrupt
                yield item

    brain.on_fit_start = lambda: (
        CodecBrain.on_fit_start(brain),
        setattr(brain.checkpointer, "recoverables", Killed(recoverables)),
    )
    with pytest.raises(KeyboardInterrupt):
        fit(brain, counter, data)
    left = [path.name for path in (tmp_path / "parts" / "save").iterdir()]
    assert sum(name.startswith("CKPT") for name in left) == 1
    assert sum(name.startswith("UNFINISHED") for name in left) == 1
    # The second epoch was logged, but not kept: it is done again.
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")
    fit(*make_brain("decoder", corpus, tmp_path / "parts"))
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")
    left = [path.name for path in (tmp_path / "parts" / "save").iterdir()]
    assert not any(name.startswith("UNFINISHED") for name in left)


@pytest.mark.parametrize(
    "stage,options",
    [
        ("decoder", {}),
        # Which parts the discriminator gets is drawn.
        ("decoder", {"adversarial": True, "judged_samples": 800}),
        ("quantizer", {}),
    ],
)
def test_resuming_within_an_epoch_changes_nothing(
    corpus, tmp_path, stage, options
):
    run_opts = {"ckpt_interval_steps": 1, "precision": "fp32"}
    fit(*make_brain(stage, corpus, tmp_path / "whole", **options))
    options = options | {"run_opts": run_opts}
    brain, counter, data = make_brain(
        stage, corpus, tmp_path / "parts", **options
    )
    original = brain.fit_batch

    def killed(batch):
        if counter.current == 2 and brain.step == 3:
            raise KeyboardInterrupt
        return original(batch)

    brain.fit_batch = killed
    with pytest.raises(KeyboardInterrupt):
        fit(brain, counter, data)
    fit(*make_brain(stage, corpus, tmp_path / "parts", **options))
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")


def schedule(total_steps):
    return WarmCoolDecayLRSchedule(
        lr=1e-2,
        warmup=1,
        cooldown=total_steps // 2,
        total_steps=total_steps,
        decay_factor=1.0,
    )


def test_the_learning_rate_ends_at_zero(corpus, tmp_path):
    """Also when a run has more steps than its schedule."""
    brain, counter, data = make_brain(
        "decoder", corpus, tmp_path, epochs=3, lr_schedule=schedule(4)
    )
    rates = []
    original = brain.optimizers_step

    def step():
        rates.append(brain.optimizer.param_groups[0]["lr"])
        original()

    brain.optimizers_step = step
    fit(brain, counter, data)
    assert len(rates) == 9
    assert rates[:4] == pytest.approx([1e-2, 1e-2, 5e-3, 0.0])
    assert rates[4:] == pytest.approx([0.0] * 5)


@pytest.mark.parametrize("limit", [4, 6])
@pytest.mark.parametrize("adversarial", [False, True])
def test_a_run_ends_after_its_steps(corpus, tmp_path, limit, adversarial):
    """Within an epoch or at its end; and has no more when it is resumed."""
    options = {
        "adversarial": adversarial,
        "epochs": 99,
        "lr_schedule": schedule(limit),
        "optimizer_step_limit": limit,
    }
    for _ in range(2):
        brain, counter, data = make_brain(
            "decoder", corpus, tmp_path, **options
        )
        fit(brain, counter, data)
        assert (brain.optimizer_step, counter.current) == (limit, 2)
        first, second = log_lines(tmp_path)
        assert f"epoch: 2, steps: {limit}, lr: 0.00e+00" in second
    # With more steps it goes on.
    options["optimizer_step_limit"] = limit + 1
    fit(*make_brain("decoder", corpus, tmp_path, **options))
    assert f"epoch: 3, steps: {limit + 1}," in log_lines(tmp_path)[2]


def test_a_run_killed_after_its_last_step_still_validates(corpus, tmp_path):
    options = {
        "epochs": 99,
        "optimizer_step_limit": 5,
        "run_opts": {"ckpt_interval_steps": 1, "precision": "fp32"},
    }
    fit(*make_brain("decoder", corpus, tmp_path / "whole", **options))
    run = make_brain("decoder", corpus, tmp_path / "parts", **options)
    evaluate_batch = run[0].evaluate_batch

    def killed(*args, **kwargs):
        if run[0].optimizer_step == 5:
            raise KeyboardInterrupt
        return evaluate_batch(*args, **kwargs)

    run[0].evaluate_batch = killed
    with pytest.raises(KeyboardInterrupt):
        fit(*run)
    fit(*make_brain("decoder", corpus, tmp_path / "parts", **options))
    assert len(log_lines(tmp_path / "parts")) == 2
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")


@pytest.mark.parametrize(
    "total,options,message",
    [
        (6, {}, None),
        (
            60,
            {},
            "take 6 steps, but total_steps is 60: the learning rate will not",
        ),
        (4, {}, "take 6 steps, but total_steps is 4: .* zero"),
        (4, {"optimizer_step_limit": 4}, None),
        (6, {"run_opts": {"grad_accumulation_factor": 3}}, "take 2 steps"),
        (60, {"run_opts": {"debug": True, "debug_batches": 1}}, None),
    ],
)
def test_a_schedule_for_other_steps_is_warned_of(
    corpus, tmp_path, caplog, total, options, message
):
    options = options | {"lr_schedule": schedule(total)}
    fit(*make_brain("quantizer", corpus, tmp_path, **options))
    told = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
    told = [text for text in told if "total_steps" in text]
    assert len(told) == (message is not None)
    assert message is None or re.search(message, told[0])


def test_samples_of_a_diverged_model_are_written(corpus, tmp_path):
    brain, counter, data = make_brain(
        "decoder",
        corpus,
        tmp_path,
        run_opts={"nonfinite_patience": 9},
        epochs=1,
        num_samples=1,
    )
    with torch.no_grad():
        next(brain.codec.decoder.parameters()).fill_(float("nan"))
    fit(brain, counter, data)
    assert (tmp_path / "samples" / "epoch_0001" / "utt0.png").is_file()


@pytest.mark.parametrize(
    "stage,adversarial",
    [("decoder", False), ("decoder", True), ("quantizer", False)],
)
def test_gradients_are_clipped(
    corpus, tmp_path, stage, adversarial, monkeypatch
):
    clipped = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, norm, *args):
        parameters = list(parameters)
        clip(parameters, norm, *args)
        total = torch.stack(
            [p.grad.norm() for p in parameters if p.grad is not None]
        ).norm()
        clipped.append((norm, float(total)))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    fit(
        *make_brain(
            stage, corpus, tmp_path, adversarial, max_grad_norm=1e-3, epochs=1
        )
    )
    # Both optimizers of the GAN, each in all three steps.
    assert len(clipped) == (6 if adversarial else 3)
    for norm, total in clipped:
        assert norm == 1e-3
        assert total <= 1.01e-3


@pytest.mark.parametrize(
    "stage,adversarial",
    [("decoder", False), ("decoder", True), ("quantizer", False)],
)
def test_losses_that_are_not_finite_stop_the_run(
    corpus, tmp_path, stage, adversarial
):
    brain, counter, data = make_brain(
        stage,
        corpus,
        tmp_path,
        adversarial,
        {"nonfinite_patience": 1},
        epochs=4,
    )
    part = getattr(brain.codec, brain.trains[0])
    with torch.no_grad():
        next(part.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite and patience"):
        fit(brain, counter, data)


def test_a_nonfinite_batch_keeps_the_weights(corpus, tmp_path):
    brain, counter, data = make_brain(
        "decoder",
        corpus,
        tmp_path,
        adversarial=True,
        run_opts={"nonfinite_patience": 3, "skip_nonfinite_grads": True},
        epochs=1,
    )
    objectives = brain.compute_objectives

    def once_nan(predictions, batch, stage):
        loss = objectives(predictions, batch, stage)
        return loss * float("nan") if brain.step == 2 else loss

    brain.compute_objectives = once_nan
    fit(brain, counter, data)
    for name, value in brain.codec.state_dict().items():
        assert value.isfinite().all(), name


def test_accumulated_steps(corpus, tmp_path):
    brain, counter, data = make_brain(
        "decoder",
        corpus,
        tmp_path,
        adversarial=True,
        run_opts={"grad_accumulation_factor": 3},
        epochs=1,
    )
    fit(brain, counter, data)
    assert brain.optimizer_step == 1


def test_fp16_does_not_accumulate_with_a_discriminator(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.amp.GradScaler, "is_enabled", lambda self: True)
    run_opts = {"grad_accumulation_factor": 2}
    with pytest.raises(ConfigError, match="grad_accumulation_factor"):
        make_brain("decoder", corpus, tmp_path, True, run_opts)


def test_decoder_trains_on_dequantized_features(corpus, tmp_path):
    fit(*make_brain("quantizer", corpus, tmp_path / "quantizer", epochs=1))
    brain, counter, data = make_brain(
        "decoder",
        corpus,
        tmp_path / "decoder",
        epochs=1,
        start_from=tmp_path / "quantizer",
        dequantized=True,
    )
    seen = []
    brain.modules.decoder.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach())
    )
    fit(brain, counter, data)
    reference = FocalCodec.from_config(CONFIG)
    load_parts(reference, find_sources([tmp_path / "quantizer"]))
    sig = data[1][0]["sig"][None]
    with torch.no_grad():
        codes = reference.toks_to_codes(reference.encode(sig)[0])
        want = reference.codes_to_qfeats(codes)
    got = seen[-2][:1, : want.shape[1]]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_export_and_validation_audio(corpus, tmp_path):
    decoder, quantizer = tmp_path / "decoder", tmp_path / "quantizer"
    run = make_brain("decoder", corpus, decoder, epochs=1)
    fit(*run)
    heard = make_brain(
        "quantizer",
        corpus,
        quantizer,
        epochs=1,
        start_from=[decoder],
        num_samples=1,
    )
    fit(*heard)
    samples = quantizer / "samples" / "epoch_0001"
    assert (samples / "utt0_reconstruction.wav").is_file()
    assert (samples / "utt0.png").is_file()

    exported = export_runs(tmp_path / "model", [decoder, quantizer])
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "hyperparams.yaml",
        "model.safetensors",
    ]
    sig = torch.randn(1, 4000)
    with torch.no_grad():
        trained = heard[0].codec.eval()
        assert torch.equal(exported.encode(sig)[0], trained.encode(sig)[0])
        torch.testing.assert_close(
            exported.resynthesize(sig), trained.resynthesize(sig)
        )


def test_export_of_bad_runs_is_refused(corpus, tmp_path):
    decoder = tmp_path / "decoder"
    fit(*make_brain("decoder", corpus, decoder, epochs=1))
    with pytest.raises(
        CheckpointError, match="no trained compressor and no de"
    ):
        export_runs(tmp_path / "model", decoder)
    with pytest.raises(CheckpointError, match="neither a folder"):
        find_sources(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_sources(tmp_path / "empty")
    other = {**CONFIG, "quantizer_config": {"codebook_size": 64}}
    other["decoder_config"] = {**CONFIG["decoder_config"], "ffn_dim": 48}
    with pytest.raises(CheckpointError, match="its decoder with ffn_dim 32"):
        load_parts(FocalCodec.from_config(other), find_sources(decoder))
    with pytest.raises(CheckpointError, match="no trained compressor; add"):
        load_parts(
            FocalCodec.from_config(CONFIG),
            find_sources(decoder),
            ["compressor"],
        )
    assert not (tmp_path / "model").exists()


def test_mel_loss_grows_with_distance():
    sig = torch.randn(1, 8000)
    noise = torch.randn(1, 8000)
    for loss in (LogMelLoss(16000), MultiResolutionSTFTLoss()):
        near, far = loss(sig + 0.01 * noise, sig), loss(sig + noise, sig)
        assert 0 < near < far


def test_masked_mse_ignores_padding():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    x[1, 2:] = y[1, 2:] = 0
    got = masked_mse(x, y, torch.tensor([5, 2]))
    valid = torch.cat([(x - y)[0], (x - y)[1, :2]])
    torch.testing.assert_close(got, valid.square().mean())
