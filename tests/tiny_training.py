"""Trains tiny Brains, alone or by torchrun; used by tests of training.

``torchrun ... tests/tiny_training.py OUT`` does what test_ddp.py looks at.
"""

import json
import os
import random
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.utils.distributed import if_main_process
from test_training import CONFIG, make_brain

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.training.codec_brain import CodecBrain
from speechbrain_focalcodec.training.distributed import (
    gather,
    run_long_on_main,
)

BATCH = 4  # utterances in a step, on however many processes
ROOT = Path(__file__).parents[1]
CAUSAL = ROOT / "tests" / "parity" / "causal_50hz"
OFFLINE = ROOT / "tests" / "parity" / "offline_50hz"
STREAMING = ("position", "encoder", "joint")
# The command that docs and READMEs show, but for `torchrun`, and tiny.
RECIPE = [
    "recipes/Folder/train.py",
    "hparams/train/mini_quantizer.yaml",
    "--model=!include:../../tests/recipes/models/offline_50hz.yaml",
    f"--encoder_source={OFFLINE}",
    *("--train_splits=[train-tiny]", "--valid_splits=[dev-tiny]"),
    *("--num_valid=0", "--batch_size=1", "--valid_batch_size=4"),
    *("--num_samples=1", "--noprogressbar", "--device=cpu"),
    *("--distributed_backend=gloo", "--debug"),
    f"--start_from={OFFLINE}",
    "--evaluation={metrics: [mel]}",
    "--train_data_options={segment_samples: 8000}",
]


class NoisyBrain(CodecBrain):
    """Draws from all generators while training, as augmentation does."""

    stage = "quantizer"

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

    def log_stats(self, meta, **stats):
        parts = {name.removesuffix("_stats"): x for name, x in stats.items()}
        self.lines.append({"meta": meta, **parts})


def keep_gradients(brain, path):
    """An optimizers' step that writes the gradients it finds, once."""
    step = brain.optimizers_step

    def keep():
        found = brain.codec.named_parameters()
        grads = {name: x.grad for name, x in found if x.requires_grad}
        # At a discriminator's step there are none.
        some = any(x is not None for x in grads.values())
        if some and if_main_process() and not path.exists():
            torch.save(grads, path)
        step()

    return keep


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


def train(
    stage,
    corpus,
    output,
    kill_at=None,
    evaluate=False,
    batch_size=BATCH,
    rate=0.01,
    **options,
):
    """Train two epochs of two steps; the figures of each epoch.

    `kill_at`, an epoch and a step, ends the run there. The gradients of the
    first step are left in `grads.pt`.
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
    brain.opt_class = lambda x: torch.optim.SGD(x, rate)
    brain.distributed_backend = "gloo"
    if "discriminator" in brain.modules:
        # Like HiFi-GAN's, it has buffers that each pass changes.
        torch.nn.utils.spectral_norm(brain.modules.discriminator.conv)
    if not (output / "grads.pt").exists():
        brain.optimizers_step = keep_gradients(brain, output / "grads.pt")
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
            train_loader_kwargs={
                "batch_size": batch_size // len(gather(None)),
                "drop_last": True,
            },
            valid_loader_kwargs={"batch_size": BATCH},
        )
    except KeyboardInterrupt:
        assert kill_at is not None
    if evaluate:
        loader = {"batch_size": BATCH}
        brain.evaluate(data[1], min_key="loss", test_loader_kwargs=loader)
    weights = torch.cat(
        [p.detach().ravel() for p in brain.modules.parameters()]
    )
    for other in gather(weights):
        assert torch.equal(other, weights), "the processes' weights differ"
    return recorder.lines


def train_all(corpus, out):
    """Each stage once."""
    start = out / "start"
    if if_main_process():
        torch.manual_seed(0)
        FocalCodec.from_config(CONFIG, name="tiny").save_pretrained(start)
    gather(None)  # wait for it
    lines = {
        "quantizer": train("quantizer", corpus, out / "quantizer"),
        "decoder": train("decoder", corpus, out / "decoder", adversarial=True),
        "end_to_end": train(
            "end_to_end",
            corpus,
            out / "end_to_end",
            adversarial=True,
            start_from=[start],
            rate=0.001,
        ),
    }
    config = json.loads((CAUSAL / "config.json").read_text())
    for stage in STREAMING:
        lines[stage] = train(
            stage,
            corpus,
            out / stage,
            codec=FocalCodec.from_config(config, name="tiny"),
            encoder_source=OFFLINE,
            start_from=[CAUSAL],
            first_layer_weight=0.5,
            last_layer_weight=1.0,
            # Rounding grows where latents near zero flip bits.
            rate=0.0005 if stage == "joint" else 0.01,
        )
    return lines


def slow_disk(handle):
    """In place of os.fsync: a process that does not wait gets ahead."""
    time.sleep(0.005)


def fail():
    """What the main process stumbles over."""
    raise DataError("torn")


def main(out):
    """Train on several processes; leave the figures in out/lines.pt."""
    os.fsync = slow_disk
    sys.argv = [
        *RECIPE,
        f"--data_folder={out / 'folder'}",
        f"--output_folder={out / 'recipe'}",
        f"--feature_cache={out / 'recipe' / 'features'}",
    ]
    # It starts the process group, which the rest goes on with.
    runpy.run_path(sys.argv[0], run_name="__main__")
    corpus = out / "corpus"
    lines = train_all(corpus, out)
    often = {"run_opts": {"ckpt_interval_steps": 1}}
    lines["whole"] = train(NoisyBrain, corpus, out / "whole", **often)
    parts = train(NoisyBrain, corpus, out / "parts", (2, 2), **often)
    parts += train(NoisyBrain, corpus, out / "parts", **often)
    lines["parts"] = parts
    train(NoisyBrain, corpus, out / "left", (1, 2), **often)
    for folder, option in (("whole", "test_only"), ("debug", "debug")):
        options = {"run_opts": {option: True}, "evaluate": True}
        lines[option] = train(NoisyBrain, corpus, out / folder, **options)
    try:
        run_long_on_main(fail)
    except Exception as error:
        lines["failures"] = gather(f"{type(error).__name__}: {error}")
    if if_main_process():
        torch.save(lines, out / "lines.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
