"""Steps of a training stage, as the recipes take them."""

import json
import os
import runpy
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from measuring import synchronize

from speechbrain_focalcodec.model_files import CONFIG_FILE, WEIGHTS_FILE
from speechbrain_focalcodec.training.codec_brain import CodecBrain

HPARAMS = Path(__file__).parent.parent / "hparams" / "train"
# Stages of the published recipe: script, YAML and Brain.
PUBLISHED = {
    "decoder": ("train_decoder.py", "vocos.yaml", "Resynthesis"),
    "quantizer": ("train_quantizer.py", "bsq.yaml", "Quantization"),
}


@dataclass(frozen=True)
class Step:
    """One step of the optimizer.

    Arguments
    ---------
    loss : float
        Its loss.
    wall : float
        Seconds from asking the loader for the batch to the end of the step.
    cpu : float
        Seconds of CPU, of all threads: where other work slows the machine.
    reading : float
        Seconds of CPU until the batch was there.
    audio : float
        Seconds that it trains on, without padding.
    padding : float
        Share of the batch that is padding.
    """

    loss: float
    wall: float
    cpu: float
    reading: float
    audio: float
    padding: float


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
    with open(path, encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream, text)
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
    loader = _make_loader(brain, dataset, hparams)
    brain._train_set = dataset
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    yield from _timed(brain, loader, hparams)


def take_published_steps(
    recipe: Path, name: str, dataset: Any, hparams: dict[str, Any], device: str
) -> Iterator[Step]:
    """Train an epoch by the authors' own SpeechBrain recipe.

    On the same batches; its encoder has random weights, and the package
    `focalcodec` must be installed. The recipe's code is run.

    Arguments
    ---------
    recipe : Path
        Folder of the recipe.
    name : str
        The stage, a key of :data:`PUBLISHED`.
    dataset : DynamicItemDataset
        The training data.
    hparams : dict
        Of :func:`load_stage`, with the loader's options.
    device : str
        Where.

    Yields
    ------
    Step
        One after the other.
    """
    script, yaml, brain_class = PUBLISHED[name]
    # Downloads, and what is only needed for its test.
    left_out = "encoder_checkpoint utmos_computer dwer_computer cache_folder"
    overrides = dict.fromkeys([*left_out.split(), "wavlm_sim_computer"])
    overrides |= {
        "data_folder": hparams["data_folder"],
        "output_folder": hparams["output_folder"],
    }
    with open(recipe / "hparams" / yaml, encoding="utf-8") as stream:
        theirs = load_hyperpyyaml(stream, overrides)
    brain = runpy.run_path(str(recipe / script))[brain_class](
        modules=theirs["modules"],
        opt_class=theirs["opt_class"],
        hparams=theirs,
        run_opts={"noprogressbar": True, "device": device},
    )
    loader = _make_loader(brain, dataset, hparams)
    yield from _timed(brain, loader, hparams)


def _make_loader(
    brain: sb.Brain, dataset: Any, hparams: dict[str, Any]
) -> Iterable[Any]:
    brain.on_fit_start()
    torch.manual_seed(0)
    brain.modules.train()
    return brain.make_dataloader(
        dataset, sb.Stage.TRAIN, **hparams["train_loader"]
    )


def _timed(
    brain: sb.Brain, loader: Iterable[Any], hparams: dict[str, Any]
) -> Iterator[Step]:
    """Take the steps of a Brain."""
    codec = hparams["codec"]
    hop = codec.decoder.hop_length / codec.sample_rate_output
    size = hparams.get("segment_frames")
    device = torch.device(brain.device)
    start, cpu = time.perf_counter(), time.process_time()
    for batch in loader:
        reading = time.process_time() - cpu
        data, lengths = batch.feats if hasattr(batch, "feats") else batch.sig
        unit = hop if data.ndim == 3 else 1 / hparams["sample_rate"]
        seconds = lengths * data.shape[1] * unit
        if size is not None:
            seconds = seconds.clamp(max=size * hop)
        audio, padding = float(seconds.sum()), 1 - float(lengths.mean())
        loss = float(brain.fit_batch(batch))
        synchronize(device)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        yield Step(loss, wall, cpu, reading, audio, padding)
        start, cpu = time.perf_counter(), time.process_time()
