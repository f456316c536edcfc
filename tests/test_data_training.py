"""Augmentation, segments after the encoder, and data options in training."""

import pytest
import speechbrain as sb
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_corpus import make_corpus
from own_script import fit_and_evaluate
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import DropChunk, SpeedPerturb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger
from test_training import CONFIG
from training_stages import compose

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.augmentation import RandomGain
from speechbrain_focalcodec.data.folder import prepare_folder
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.training.checkpointing import AtomicCheckpointer
from speechbrain_focalcodec.training.codec_brain import CodecBrain
from speechbrain_focalcodec.training.entry import prepare_manifests
from speechbrain_focalcodec.training.losses import LogMelLoss
from speechbrain_focalcodec.training.segments import (
    crop_features,
    random_starts,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "data"
    return make_corpus("Folder", folder, ["train"], 4, 3, duration=0.3)


def make_hparams(corpus, output, epochs=2, stage="decoder", **overrides):
    """What a YAML of a stage holds."""
    sb.utils.seed.seed_everything(1)
    counter = EpochCounter(epochs)
    output.mkdir(parents=True, exist_ok=True)
    hparams = {
        "seed": 1,
        "data_folder": str(corpus),
        "save_folder": str(output / "save"),
        "output_folder": str(output),
        "train_splits": ["train"],
        "valid_splits": [],
        "num_valid": 3,
        "sample_rate": 16000,
        "preload": False,
        "train_data_options": {},
        "valid_data_options": {"chunk_samples": 3000},
        "codec": FocalCodec.from_config(CONFIG),
        "brain": CodecBrain,
        "modules": {},
        "opt_class": lambda x: torch.optim.AdamW(x, 1e-2),
        "checkpointer": AtomicCheckpointer(
            output / "save", {"counter": counter}
        ),
        "epoch_counter": counter,
        "train_logger": FileTrainLogger(str(output / "train_log.txt")),
        "num_samples": 0,
        "losses": {"mel": LogMelLoss(16000)},
        "loss_weights": {"mel": 1.0},
        "discriminator_opt_class": None,
        "encoder_source": None,
        "start_from": [],
        "freeze": [],
        "dequantized": False,
        "train_loader": {"batch_size": 4, "shuffle": True, "drop_last": True},
        "valid_loader": {"batch_size": 4},
        **overrides,
    }
    return compose(stage, hparams) | hparams


def train(corpus, output, run_opts=None, **overrides):
    hparams = make_hparams(corpus, output, **overrides)
    prepare_manifests(prepare_folder, hparams)
    options = {"device": "cpu", "noprogressbar": True} | (run_opts or {})
    fit_and_evaluate(hparams, options)


class Spy:
    """A wrapper of the Brain that notes, and may stop, what is trained on."""

    def __init__(self, stop_at=None):
        self.batches, self.shapes, self.stop_at = [], [], stop_at

    def __call__(self, **options):
        brain = CodecBrain(**options)
        fit_batch, forward = brain.fit_batch, brain.compute_forward

        def spy(batch):
            if len(self.batches) == self.stop_at:
                raise KeyboardInterrupt
            self.batches.append(tuple(batch.id))
            return fit_batch(batch)

        def spy_forward(batch, stage):
            predictions = forward(batch, stage)
            shape = batch.sig.data.shape, predictions["target"].shape
            self.shapes.append((stage, *shape))
            return predictions

        brain.fit_batch, brain.compute_forward = spy, spy_forward
        return brain


def test_training_by_duration_resumes_within_an_epoch(corpus, tmp_path):
    options = {"max_batch_seconds": 0.7}
    whole = Spy()
    train(corpus, tmp_path / "whole", brain=whole, **options)
    per_epoch = len(whole.batches) // 2
    assert per_epoch > 3
    for epoch in (whole.batches[:per_epoch], whole.batches[per_epoch:]):
        assert len({name for batch in epoch for name in batch}) == 9
    assert all(
        shape.numel() <= 11200
        for stage, shape, _ in whole.shapes
        if stage == sb.Stage.TRAIN
    )
    parts = Spy(stop_at=per_epoch + 2)
    run_opts = {"ckpt_interval_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path / "parts", run_opts, brain=parts, **options)
    rest = Spy()
    train(corpus, tmp_path / "parts", run_opts, brain=rest, **options)
    assert parts.batches + rest.batches == whole.batches
    logs = [
        (tmp_path / run / "train_log.txt").read_text()
        for run in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


def test_segments_are_cut_after_the_encoder(corpus, tmp_path):
    spy = Spy()
    options = {"epochs": 1, "num_samples": 1}
    train(corpus, tmp_path, brain=spy, segment_frames=10, **options)
    for stage, sig, target in spy.shapes:
        if stage == sb.Stage.TRAIN:
            assert sig[1] > 4800
            assert target[1] == 10 * 320
        else:
            assert target[1] == sig[1]
    # Ids of files in folders are names of samples.
    samples = tmp_path / "samples" / "epoch_0001"
    assert len(list(samples.rglob("*_reconstruction.wav"))) == 1


def test_options_of_the_preparation_come_from_the_yaml(corpus, tmp_path):
    (corpus / "train" / "bad.wav").write_text("no audio")
    try:
        hparams = make_hparams(corpus, tmp_path)
        hparams["prepare_options"] = {"max_failures": 0.0}
        with pytest.raises(DataError, match="bad.wav"):
            prepare_manifests(prepare_folder, hparams)
        hparams["prepare_options"] = {"max_failures": 0.1}
        prepare_manifests(prepare_folder, hparams)
    finally:
        (corpus / "train" / "bad.wav").unlink()


# Augmentation


def make_brain(corpus, tmp_path, augmentation):
    hparams = make_hparams(corpus, tmp_path, augmentation=augmentation)
    return CodecBrain({}, hparams["opt_class"], hparams, {"device": "cpu"})


def make_batch():
    sigs = [0.5 * torch.randn(length).tanh() for length in (3200, 4800)]
    return PaddedBatch(
        [{"id": str(i), "sig": sig} for i, sig in enumerate(sigs)]
    )


def test_only_training_is_augmented(corpus, tmp_path):
    brain = make_brain(corpus, tmp_path, lambda sig, lens: (-sig, lens))
    batch = make_batch()
    brain.modules.eval()
    sig, lengths = brain.signals(batch)
    assert torch.equal(sig, batch.sig.data)
    brain.modules.train()
    sig, lengths = brain.signals(batch)
    assert torch.equal(sig, -batch.sig.data)
    assert lengths.tolist() == [3200, 4800]
    predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
    assert torch.equal(predictions["target"], -batch.sig.data)


def test_lengths_follow_a_change_of_speed(corpus, tmp_path):
    augmenter = Augmenter(
        augmentations=[
            SpeedPerturb(16000, speeds=[50]),
            DropChunk(),
            RandomGain(-6, 0),
        ],
        min_augmentations=3,
        max_augmentations=3,
    )
    brain = make_brain(corpus, tmp_path, augmenter)
    sig, lengths = brain.signals(make_batch())
    assert sig.shape == (2, 9600)
    assert lengths.tolist() == [6400, 9600]
    predictions = brain.compute_forward(make_batch(), sb.Stage.TRAIN)
    assert predictions["lengths"].tolist() == [6400, 9600]
    assert torch.isfinite(predictions["estimate"]).all()


@given(
    low=st.floats(-60, 60),
    width=st.floats(0, 60),
    peak=st.sampled_from([0.0, 1e-6, 0.1, 0.99, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_gain(low, width, peak, seed):
    torch.manual_seed(seed)
    sig = torch.rand(4, 50) * 2 - 1
    sig = sig / sig.abs().amax(1, keepdim=True) * peak
    gain = RandomGain(low, low + width)
    wav_lens = torch.ones(4)
    out, lengths = gain(sig, wav_lens)
    assert lengths is wav_lens
    assert out.abs().max() <= 1
    if peak < 1e-6:
        assert not out.any()
        return
    decibels = 20 * (out.abs().amax(1) / peak).log10()
    assert (decibels <= low + width + 1e-3).all()
    full = out.abs().amax(1) > 1 - 1e-5
    assert ((decibels >= low - 1e-3) | full).all()
    # One factor for the whole utterance.
    scale = out.abs().amax(1, keepdim=True) / peak
    assert torch.allclose(out, sig * scale, rtol=1e-4, atol=1e-7)


def test_gains_follow_torchs_generator():
    sig, wav_lens = torch.ones(8, 4) / 4, torch.ones(8)
    gain = RandomGain(-20, 10)
    torch.manual_seed(1)
    first, _ = gain(sig, wav_lens)
    second, _ = gain(sig, wav_lens)
    torch.manual_seed(1)
    again, _ = gain(sig, wav_lens)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert len(first[:, 0].unique()) == 8
    with pytest.raises(ValueError, match="must not be above"):
        RandomGain(3, 2)


# Segments after the encoder


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    short=st.integers(0, 7),
    segment=st.integers(1, 50),
    hop=st.integers(1, 7),
)
def test_features_and_waveform_stay_aligned(lengths, short, segment, hop):
    frames = torch.tensor(lengths)
    steps = torch.arange(1, int(frames.max()) + 1).expand(len(lengths), -1)
    steps = steps * (steps <= frames[:, None])
    feats = steps[..., None].float()
    # The waveform may be a few samples shorter or longer than the frames.
    samples = (frames * hop + 3 - short).clamp(min=1)
    sig = steps.repeat_interleave(hop, 1).float()
    sig = torch.nn.functional.pad(sig, (0, 3), value=0.5)
    starts = random_starts(frames, segment)
    cut = crop_features(feats, frames, sig, samples, starts, segment, hop)
    feats, kept, sig, lengths_cut = cut
    assert feats.shape == (len(lengths), segment, 1)
    assert sig.shape == (len(lengths), segment * hop)
    assert torch.equal(kept, frames.clamp(max=segment))
    for i, length in enumerate(lengths_cut.tolist()):
        own = feats[i, : int(kept[i]), 0]
        assert torch.equal(own, own[0] + torch.arange(len(own)))
        assert not feats[i, int(kept[i]) :].any()
        assert torch.equal(sig[i, :length], own.repeat_interleave(hop)[:length])
        assert not sig[i, length:].any()
        start = (int(own[0]) - 1) * hop
        expected = max(min(int(samples[i]) - start, len(own) * hop), 0)
        assert length == expected


def test_every_segment_is_drawn_and_the_generator_decides():
    frames = torch.full((400,), 8)

    def starts(seed):
        torch.manual_seed(seed)
        return random_starts(frames, 5)

    assert set(starts(1).tolist()) == {0, 1, 2, 3}
    assert torch.equal(starts(1), starts(1))
    assert not torch.equal(starts(1), starts(2))
    feats, sig = torch.zeros(400, 8, 1), torch.zeros(400, 8)
    with pytest.raises(ValueError, match="segment_frames"):
        crop_features(feats, frames, sig, frames, frames, 0, 1)
