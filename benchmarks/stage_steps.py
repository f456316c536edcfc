"""Steps of a training stage, as the recipes take them."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from measuring import synchronize

from speechbrain_focalcodec.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from speechbrain_focalcodec.training.base import CodecBrain
from speechbrain_focalcodec.training.yamls import load_yaml

HPARAMS = Path(__file__).parent.parent / "hparams" / "train"


@dataclass(frozen=True)
class Step:
    """One step of the optimizer.

    Arguments
    ---------
    loss : float
        Its loss.
    wall : float
        Seconds from asking the loader for the batch to the end of the step.
    audio : float
        Seconds of waveform in the batch, without padding; 0 for features.
    padded : float
        The same with padding.
    """

    loss: float
    wall: float
    audio: float
    padded: float


def load_stage(
    path: Path,
    folder: Path,
    overrides: Mapping[str, Any],
    model: Path | None = None,
) -> dict[str, Any]:
    """Load a stage's YAML, with random weights where it wants trained ones.

    Arguments
    ---------
    path : Path
        The YAML.
    folder : Path
        Gets a model with random weights, unless it holds one of before, and
        what the stage writes.
    overrides : dict
        Plain values that take the place of the YAML's.
    model : Path, optional
        Another model's YAML.

    Returns
    -------
    dict
        Hyperparameters.
    """
    source, teacher = folder / "random_model", folder / "random_teacher"
    given = {
        "data_folder": str(folder),
        "output_folder": str(folder / "run"),
        "encoder_source": str(teacher),
        "start_from": [str(source)],
        **overrides,
    }
    # JSON is YAML too, but for tags.
    text = "".join(f"{key}: {json.dumps(x)}\n" for key, x in given.items())
    if model is not None:
        text += f"model: !include:{model.absolute()}\n"
    hparams = load_yaml(path, text)
    if not source.exists():
        hparams["codec"].save_pretrained(source)
        # The weights of a causal encoder have the names of its teacher's.
        teacher.mkdir(exist_ok=True)
        for file in teacher.iterdir():
            file.unlink()
        os.link(source / WEIGHTS_FILE, teacher / WEIGHTS_FILE)
        config = json.loads((source / CONFIG_FILE).read_text())
        config["encoder_config"]["causal"] = False
        (teacher / CONFIG_FILE).write_text(json.dumps(config))
    return hparams


def make_brain(hparams: dict[str, Any], options: dict[str, Any]) -> CodecBrain:
    """Make the Brain that a YAML names, without checkpoints.

    Arguments
    ---------
    hparams : dict
        Of :func:`load_stage`.
    options : dict
        SpeechBrain's run options.

    Returns
    -------
    CodecBrain
        Ready for :func:`take_steps`.
    """
    return hparams["brain"](
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts={"noprogressbar": True, **options},
    )


def take_steps(
    brain: CodecBrain, dataset: Any, hparams: dict[str, Any]
) -> Iterator[Step]:
    """Train an epoch; what happens between two steps does not count.

    Arguments
    ---------
    brain : CodecBrain
        Of :func:`make_brain`.
    dataset : DynamicItemDataset
        The training data.
    hparams : dict
        With the loader's options.

    Yields
    ------
    Step
        One after the other.
    """
    device = torch.device(brain.device)
    brain.on_fit_start()
    torch.manual_seed(0)
    loader = brain.make_dataloader(
        dataset, sb.Stage.TRAIN, **hparams["train_loader"]
    )
    brain.modules.train()
    brain._train_set = dataset
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    start = time.perf_counter()
    for batch in loader:
        loss = float(brain.fit_batch(batch))
        synchronize(device)
        wall = time.perf_counter() - start
        audio = padded = 0.0
        if hasattr(batch, "sig"):
            sig, lengths = batch.sig
            padded = sig.numel() / hparams["sample_rate"]
            audio = padded * float(lengths.mean())
        yield Step(loss, wall, audio, padded)
        start = time.perf_counter()
