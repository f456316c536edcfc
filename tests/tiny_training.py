"""Trains tiny Brains, alone or by torchrun; used by tests of training.

``torchrun ... tests/tiny_training.py OUT`` does what test_ddp.py looks at.
"""

import os
import random
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.utils.distributed import ddp_init_group, if_main_process
from test_training import make_brain

from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.training.decoder import DecoderBrain
from speechbrain_focalcodec.training.distributed import gather
from speechbrain_focalcodec.training.quantizer import QuantizerBrain

BATCH = 4  # utterances in a step, on however many processes


class NoisyBrain(QuantizerBrain):
    """Draws from all generators while training, as augmentation does."""

    def signals(self, batch):
        sig, lengths = super().signals(batch)
        if self.modules.training:
            sig = sig * (0.5 + random.random()) * (0.5 + np.random.rand())
            sig = torch.nn.functional.dropout(sig, 0.2)
        return sig, lengths


class Recorder:
    """A logger that keeps the figures as they are."""

    def __init__(self):
        self.lines = []

    def log_stats(self, meta, train_stats, valid_stats):
        self.lines.append(
            {"meta": meta, "train": train_stats, "valid": valid_stats}
        )


def write_corpus(folder: Path) -> Path:
    """Eight utterances of different lengths and levels."""
    generator = np.random.default_rng(0)
    entries = {}
    for i in range(8):
        # Neighbours differ most: they meet in a batch.
        samples = 4000 + 2400 * (i % 3) + 300 * i
        sig = generator.standard_normal(samples) * 0.02 * (1 + i % 4)
        soundfile.write(folder / f"utt{i}.wav", sig, 16000)
        entries[f"utt{i}"] = {
            "wav": f"{{data_root}}/utt{i}.wav",
            "num_samples": samples,
            "sample_rate": 16000,
            "duration": samples / 16000,
        }
    write_manifest(folder / "train.json", entries)
    return folder


def train(stage, corpus, output, kill_at=None, **options):
    """Train two epochs of two steps; the figures of each epoch.

    `kill_at`, an epoch and a step, ends the run there.
    """
    recorder = Recorder()
    brain, counter, data = make_brain(
        stage,
        corpus,
        output,
        train_logger=recorder,
        # SpeechBrain's way to an order that is no random one.
        sorting="ascending",
        # Gradients show as they are: no clipping, no normalisation.
        max_grad_norm=1e9,
        discriminator_opt_class=lambda x: torch.optim.SGD(x, 0.01),
        **{"epochs": 2, **options},
    )
    brain.opt_class = lambda x: torch.optim.SGD(x, 0.01)
    brain.distributed_backend = "gloo"
    if "discriminator" in brain.modules:
        # Like HiFi-GAN's, it has buffers that each pass changes.
        torch.nn.utils.spectral_norm(brain.modules.discriminator.conv)
    fit_batch = brain.fit_batch

    def killed(batch):
        if (counter.current, brain.step) == kill_at:
            raise KeyboardInterrupt
        return fit_batch(batch)

    brain.fit_batch = killed
    try:
        brain.fit(
            counter,
            *data,
            train_loader_kwargs={"batch_size": BATCH // len(gather(None))},
            valid_loader_kwargs={"batch_size": BATCH},
        )
    except KeyboardInterrupt:
        assert kill_at is not None
    weights = torch.cat(
        [p.detach().ravel() for p in brain.modules.parameters()]
    )
    for other in gather(weights):
        assert torch.equal(other, weights), "the processes' weights differ"
    return recorder.lines


def train_all(corpus, out):
    """Each stage once."""
    return {
        "quantizer": train(QuantizerBrain, corpus, out / "quantizer"),
        "decoder": train(
            DecoderBrain, corpus, out / "decoder", adversarial=True
        ),
    }


def main(out):
    """Train on several processes; leave the figures in out/lines.pt."""
    os.fsync = lambda handle: None  # the power stays on
    ddp_init_group({"distributed_backend": "gloo"})
    corpus = out / "corpus"
    lines = train_all(corpus, out)
    often = {"run_opts": {"ckpt_interval_steps": 1}}
    lines["whole"] = train(NoisyBrain, corpus, out / "whole", **often)
    parts = train(NoisyBrain, corpus, out / "parts", (2, 2), **often)
    parts += train(NoisyBrain, corpus, out / "parts", **often)
    lines["parts"] = parts
    train(NoisyBrain, corpus, out / "left", (1, 2), **often)
    if if_main_process():
        torch.save(lines, out / "lines.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
