"""The stage that trains through the bits, and what it judges by."""

import pytest
import speechbrain as sb
import test_training
import torch
from speechbrain.dataio.batch import PaddedBatch
from test_training import CONFIG, fit, log_lines, make_brain, valid_losses
from whisper.audio import log_mel_spectrogram
from whisper.model import ModelDimensions, Whisper

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.codec_brain import CodecBrain
from speechbrain_focalcodec.training.discriminators import (
    CompactDiscriminator,
    PeriodDiscriminator,
    SpectrogramDiscriminator,
)
from speechbrain_focalcodec.training.export import export_runs
from speechbrain_focalcodec.training.perceptual import WhisperLoss
from speechbrain_focalcodec.training.sources import find_sources

corpus = test_training.corpus  # a fixture
WEIGHTS = {
    "mel": 1.0,
    "stft": 1.0,
    "adversarial": 0.1,
    "feature_matching": 1.0,
    "feats": 1.0,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A codec that was never trained, as a folder."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    FocalCodec.from_config(CONFIG, name="tiny").save_pretrained(folder)
    return folder


def compact():
    return CompactDiscriminator((2, 3), (4, 8), (256,), (4, 8))


def run(corpus, output, model, discriminator=None, **options):
    modules = {} if discriminator is None else {"discriminator": discriminator}
    options = {"loss_weights": WEIGHTS, "start_from": [str(model)]} | options
    options.setdefault("entropy_weight", 0.02)
    brain, counter, data = make_brain(
        "end_to_end", corpus, output, modules=modules, **options
    )
    fit(brain, counter, data)
    return brain


def test_all_three_parts_learn(corpus, tmp_path, model):
    before = FocalCodec.from_pretrained(model).state_dict()
    brain = run(corpus, tmp_path, model, compact(), epochs=4)
    losses = valid_losses(tmp_path)
    assert losses[-1] < losses[0]
    after = brain.codec.state_dict()
    changed = {
        name.partition(".")[0]
        for name in before
        if not torch.equal(before[name], after[name])
    }
    assert changed == {"compressor", "decompressor", "decoder"}
    line = log_lines(tmp_path)[-1]
    names = {*WEIGHTS, "mse", "entropy", "discriminator", "code_usage"}
    for name in names - {"feats"}:
        assert f"train {name}" in line


def test_the_gradient_passes_the_quantizer(corpus, tmp_path, model):
    brain = run(corpus, tmp_path, model, epochs=1)
    sigs = [{"id": str(n), "sig": torch.randn(n)} for n in (3200, 2000)]
    brain.modules.zero_grad()
    outputs = brain.compute_forward(PaddedBatch(sigs), sb.Stage.VALID)
    outputs["estimate"].sum().backward()
    for name in brain.trains:
        for weight in brain.modules[name].parameters():
            assert weight.grad is not None and weight.grad.any(), name


def test_tokens_of_frozen_parts_do_not_change(corpus, tmp_path, model):
    brain = run(corpus, tmp_path, model, epochs=1, freeze=["compressor"])
    sig = torch.randn(1, 16000)
    expected, _ = FocalCodec.from_pretrained(model).encode(sig)
    assert torch.equal(brain.codec.encode(sig)[0], expected)


def test_trained_parts_are_exported(corpus, tmp_path, model):
    brain = run(corpus, tmp_path / "run", model, epochs=1)
    export_runs(tmp_path / "model", [tmp_path / "run"])
    sig = torch.randn(1, 16000)
    codec = FocalCodec.from_pretrained(tmp_path / "model")
    assert torch.equal(codec.resynthesize(sig), brain.codec.resynthesize(sig))


def test_the_last_two_decoders_are_averaged(corpus, tmp_path, model):
    brain = run(corpus, tmp_path / "run", model, epochs=1)
    codec = export_runs(
        tmp_path / "model", [model, tmp_path / "run"], decoder_share=0.25
    )
    before = FocalCodec.from_pretrained(model).state_dict()
    trained, averaged = brain.codec.state_dict(), codec.state_dict()
    for name in averaged:
        wanted = trained[name]
        if name.startswith("decoder."):
            wanted = 0.75 * before[name] + 0.25 * wanted
        torch.testing.assert_close(averaged[name], wanted)
    with pytest.raises(CheckpointError, match="run or model before it"):
        export_runs(tmp_path / "x", tmp_path / "run", decoder_share=0.5)
    with pytest.raises(ValueError, match="decoder_share must be within"):
        export_runs(tmp_path / "x", [model, model], decoder_share=2.0)
    assert not (tmp_path / "x").exists()


def test_it_needs_all_three_parts(corpus, tmp_path):
    with pytest.raises(CheckpointError, match="compressor"):
        run(corpus, tmp_path, "nowhere", start_from=[])


class Listening(torch.nn.Module):
    """A discriminator that keeps its inputs."""

    def __init__(self):
        super().__init__()
        self.inner = compact()
        self.heard = []

    def forward(self, sig):
        self.heard.append(sig.detach())
        return self.inner(sig)


def test_the_discriminator_gets_a_part(corpus, tmp_path, model):
    brain = run(
        corpus, tmp_path, model, Listening(), epochs=1, judged_samples=1000
    )
    heard = brain.modules.discriminator.heard
    assert {sig.shape for sig in heard} == {(2, 1, 1000)}


def test_the_part_lies_within_the_utterance(corpus, tmp_path, model):
    listening = Listening()
    brain, *_ = make_brain(
        "end_to_end",
        corpus,
        tmp_path,
        modules={"discriminator": listening},
        start_from=[str(model)],
        judged_samples=1000,
    )
    # A ramp tells where a part begins.
    lengths = torch.tensor([16000, 1280, 640])
    sig = zero_beyond(torch.arange(1.0, 16001).expand(3, -1), lengths)
    for _ in range(5):
        outputs = {"estimate": -sig, "target": sig, "lengths": lengths}
        brain.opponent.opposing_loss(outputs)
    # It gets the estimate, then the target.
    parts = torch.stack(listening.heard[1::2])[:, :, 0]
    assert (parts[:, :2] > 0).all()
    # The last is shorter than a part: zeros stand behind it.
    assert torch.equal(parts[:, 2, :640], sig[2:, :640].expand(5, -1))
    assert not parts[:, 2, 640:].any()
    # Each utterance has a draw of its own.
    assert len(parts[:, 0, 0].unique()) == len(parts[:, 1, 0].unique()) == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: PeriodDiscriminator(3, [8, 16]),
        lambda: SpectrogramDiscriminator(256, [8, 16]),
    ],
)
def test_discriminators_learn(make):
    torch.manual_seed(0)
    discriminator = make()
    optimizer = torch.optim.Adam(discriminator.parameters(), 3e-3)
    time = torch.arange(2000) / 16000

    def draw():
        hz = 100 + 300 * torch.rand(4, 1, 1)
        real = 0.3 * torch.sin(2 * torch.pi * hz * time)
        return real, 0.2 * torch.randn(4, 1, 2000)

    for _ in range(30):
        real, fake = (discriminator(sig)[0] for sig in draw())
        loss = (1 - real).relu().mean() + (1 + fake).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    real, fake = (discriminator(sig)[0] for sig in draw())
    assert fake.mean() < 0 < real.mean()


def test_initial_feature_maps_keep_their_scale():
    # Or feature matching would be nothing at first.
    torch.manual_seed(0)
    _, maps = CompactDiscriminator()(0.1 * torch.randn(2, 1, 8000))
    for maps_of_one in maps:
        first, *_, last, _ = (x.detach().abs().mean() for x in maps_of_one)
        assert 0.2 < last / first < 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Whisper with random weights, and its file."""
    torch.manual_seed(0)
    dims = ModelDimensions(80, 1500, 8, 2, 2, 51864, 448, 8, 2, 1)
    whisper = Whisper(dims).eval()
    path = tmp_path_factory.mktemp("whisper") / "tiny.pt"
    state = {"dims": vars(dims), "model_state_dict": whisper.state_dict()}
    torch.save(state, path)
    return path, whisper


def test_whisper_loss_has_the_activations_of_whisper(checkpoint):
    path, whisper = checkpoint
    found = []
    for block in whisper.encoder.blocks:
        block.register_forward_hook(lambda *call: found.append(call[-1]))
    sig = 0.1 * torch.randn(1, 480000)
    with torch.no_grad():
        whisper.encoder(log_mel_spectrogram(sig[0])[None])
        maps = WhisperLoss(path)._activations(sig)
    assert len(maps) == len(found) == 2
    for x, y in zip(maps, found, strict=True):
        y = torch.nn.functional.layer_norm(y, y.shape[-1:])
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def test_whisper_loss(checkpoint):
    loss = WhisperLoss(checkpoint[0])
    torch.manual_seed(0)
    target = 0.1 * torch.randn(2, 8100)
    assert loss(target, target) == 0
    near, far = (target + x * torch.randn(2, 8100) for x in (0.001, 0.1))
    near.requires_grad_()
    value = loss(near, target)
    assert 0 < value < loss(far, target)
    value.backward()
    assert near.grad.isfinite().all() and near.grad.any()
    assert not any(x.requires_grad for x in loss.parameters())
    # One utterance does not change what is heard of another.
    alone = loss._activations(target[:1])
    both = loss._activations(target * torch.tensor([[1.0], [30.0]]))
    for x, y in zip(alone, both, strict=True):
        torch.testing.assert_close(x, y[:1], atol=1e-5, rtol=1e-5)


def test_whisper_loss_ignores_padding_frames(checkpoint):
    loss = WhisperLoss(checkpoint[0])
    torch.manual_seed(0)
    target, noise = 0.1 * torch.randn(2, 2, 8000)
    lengths = torch.tensor([8000, 3300])
    target, estimate = (
        zero_beyond(sig, lengths) for sig in (target, target + 0.3 * noise)
    )
    # By hand: 25 frames, and 11 that begin within 3300 samples.
    expected = 0.0
    layers = (loss._activations(sig) for sig in (estimate, target))
    for x, y in zip(*layers, strict=True):
        x, y = (torch.cat([each[0], each[1, :11]]) for each in (x, y))
        assert y.shape == (36, 8)
        expected += (x - y).square().sum() / (y - y.mean(0)).square().sum() / 2
    torch.testing.assert_close(loss(estimate, target, lengths), expected)
    assert abs(loss(estimate, target) / expected - 1) > 0.02
    whole = torch.tensor([8000, 8000])
    assert loss(estimate, target, whole) == loss(estimate, target)


def test_whisper_loss_does_not_depend_on_padding(checkpoint):
    loss = WhisperLoss(checkpoint[0])
    # Attention, by which padding is heard of, taken away.
    for block in loss.encoder.blocks:
        block.attn.out.weight.zero_()
    torch.manual_seed(0)
    target = 0.1 * torch.randn(2, 8000)
    estimate = target + 0.01 * torch.randn(2, 8000)
    estimate.requires_grad_()
    lengths = torch.tensor([8000, 3200])
    loss(estimate, target, lengths).backward()
    # Windows and convolutions reach a little further than a frame.
    assert not estimate.grad[1, 4000:].any()
    assert estimate.grad[1, :3200].any() and estimate.grad[0, 7000:].any()
    other = estimate.detach().clone()
    other[1, 4000:] = 0
    assert loss(other, target, lengths) == loss(estimate, target, lengths)
    assert loss(other, target) != loss(estimate, target)


def test_losses_with_lengths(corpus, tmp_path, model):
    given = []

    class Asking(torch.nn.Module):
        def forward(self, estimate, target, lengths=None):
            given.append(lengths)
            return (estimate - target).abs().mean()

    losses = {"mel": Asking(), "stft": torch.nn.L1Loss()}
    run(corpus, tmp_path, model, epochs=1, losses=losses)
    # The two utterances of the last batch of validation.
    assert len(set(given[-1].tolist())) == 2
    assert all(x.dtype == torch.int64 for x in given)


def test_whisper_loss_refuses(tmp_path, checkpoint):
    with pytest.raises(ValueError, match="16000 Hz, not 24000"):
        WhisperLoss(checkpoint[0], sample_rate=24000)
    with pytest.raises(CheckpointError, match="nowhere"):
        WhisperLoss("nowhere.pt")
    with pytest.raises(CheckpointError, match="--whisper_checkpoint=tiny"):
        WhisperLoss(None)


@pytest.mark.parametrize("adversarial", [False, True])
def test_with_a_discriminator_the_last_is_the_best(
    corpus, tmp_path, model, adversarial, monkeypatch
):
    def worse_each_epoch(brain, predictions, batch, stage):
        loss = objectives(brain, predictions, batch, stage)
        if stage == sb.Stage.VALID:
            return torch.tensor(float(brain.hparams.epoch_counter.current))
        return loss

    objectives = CodecBrain.compute_objectives
    monkeypatch.setattr(CodecBrain, "compute_objectives", worse_each_epoch)
    discriminator = compact() if adversarial else None
    run(corpus, tmp_path, model, discriminator, epochs=3)
    assert valid_losses(tmp_path) == [1, 2, 3]
    [source] = find_sources([tmp_path])
    text = (source.folder / "CKPT.yaml").read_text()
    assert f"epoch: {3 if adversarial else 1}\n" in text
