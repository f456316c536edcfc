"""Measures training: speed and memory of the steps of each stage.

Example, from the repository's root:

    python benchmarks/training_speed.py --batch-size 1 --steps 2

Each YAML runs in a process of its own. Its Brain is built as in the recipes,
with random weights in place of trained ones, and trains on noise whose lengths
are those of LibriTTS on average, with the YAML's own batch size and segments
unless told otherwise. The first step, which makes the optimizer's state, does
not count. A batch of one has no padding, but uses a GPU badly.
"""

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import speechbrain as sb
import torch
import typer
from hyperpyyaml import load_hyperpyyaml
from measuring import (
    describe_machine,
    markdown_table,
    measure_memory,
    parse_names,
    run_apart,
    show,
    synchronize,
    write_json,
)

from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.model_files import CONFIG_FILE, WEIGHTS_FILE

app = typer.Typer(add_completion=False)

HPARAMS = Path(__file__).parent.parent / "hparams" / "train"
STAGES = (
    "decoder,quantizer,quantizer_25hz,quantizer_12_5hz,stream_decoder,"
    "stream_position,stream_encoder,stream_quantizer_4k,stream_joint_4k,"
    "mini_decoder,mini_quantizer,mini_stream_pretraining,mini_stream_decoder,"
    "mini_stream_position,mini_stream_encoder,mini_stream_quantizer,"
    "mini_stream_joint"
)
# Lengths of the utterances (s), 5.6 s on average as in LibriTTS.
SHORTEST, MEAN, LONGEST = 1.0, 5.6, 25.0


@dataclass(frozen=True)
class Settings:
    """How to measure; None takes the YAML's value.

    Arguments
    ---------
    steps : int
        Steps to measure.
    device : str
        Where.
    batch_size : int, optional
        Utterances a step.
    segment : float, optional
        Seconds of each.
    precision : str, optional
        ``fp32`` or ``bf16``.
    workers : int
        Processes that read audio.
    model : Path, optional
        YAML of another model.
    """

    steps: int = 2
    device: str = "cpu"
    batch_size: int | None = None
    segment: float | None = None
    precision: str | None = None
    workers: int = 0
    model: Path | None = None


@dataclass(frozen=True)
class Cost:
    """Cost of a stage's steps.

    Arguments
    ---------
    yaml, model : str
        Names of the YAML and of the model.
    trained, discriminator : int
        Trained parameters, without and of a discriminator.
    precision : str
        Such as ``fp32``.
    batch_size : int
        Utterances a step.
    item_seconds : float
        Mean duration of an item, without padding.
    padding : float
        Share of the batches that is padding.
    steps_per_second, audio_per_second : float
        Speed in steps and in seconds of audio.
    peak_mib : float, optional
        Peak memory of the steps (MiB).
    loss : float
        Of the last step.
    """

    yaml: str
    model: str
    trained: int
    discriminator: int
    precision: str
    batch_size: int
    item_seconds: float
    padding: float
    steps_per_second: float
    audio_per_second: float
    peak_mib: float | None
    loss: float


@dataclass(frozen=True)
class Step:
    """One step: loss, seconds, seconds of audio, and share of padding."""

    loss: float
    wall: float
    audio: float
    padding: float


def find_yaml(name: str) -> Path:
    """Find a stage's YAML by its name or path."""
    path = Path(name) if name.endswith(".yaml") else HPARAMS / f"{name}.yaml"
    if not path.is_file():
        found = ", ".join(sorted(path.stem for path in HPARAMS.glob("*.yaml")))
        raise typer.BadParameter(
            f"--yamls: {path} is missing; give paths, or names of {found}"
        )
    return path


def speech_lengths(count: int) -> list[float]:
    """Typical lengths of utterances, from short to long (s).

    Example
    -------
    >>> [round(length, 1) for length in speech_lengths(4)]
    [1.6, 3.2, 5.5, 10.6]
    """
    quantiles = [(i + 0.5) / count for i in range(count)]
    scale = MEAN - SHORTEST
    return [min(SHORTEST - scale * math.log1p(-q), LONGEST) for q in quantiles]


def write_noise(folder: Path, sample_rate: int, lengths: Sequence[float]):
    """Write a corpus of noise with the manifest ``train.json``."""
    generator = np.random.default_rng(0)
    entries = {}
    for i, length in enumerate(lengths):
        samples = round(length * sample_rate)
        sig = 0.1 * generator.standard_normal(samples)
        soundfile.write(folder / f"{i:06d}.wav", sig, sample_rate)
        entries[f"{i:06d}"] = {
            "wav": f"{{data_root}}/{i:06d}.wav",
            "num_samples": samples,
            "sample_rate": sample_rate,
            "duration": length,
        }
    write_manifest(folder / "train.json", entries)


def load_stage(
    path: Path,
    folder: Path,
    overrides: Mapping[str, Any],
    model: Path | None = None,
) -> dict[str, Any]:
    """Load a stage's YAML; random weights take the place of trained ones."""
    source, teacher = folder / "random_model", folder / "random_teacher"
    given = {
        "data_folder": str(folder),
        "output_folder": str(folder / "run"),
        "encoder_source": str(teacher),
        "start_from": [str(source)],
        **overrides,
    }
    # JSON is YAML, except for tags.
    text = "".join(f"{key}: {json.dumps(x)}\n" for key, x in given.items())
    if model is not None:
        text += f"model: !include:{model.absolute()}\n"
    with open(path, encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream, text)
    hparams["codec"].save_pretrained(source)
    # The teacher of a causal encoder has the same weights, but is not causal.
    teacher.mkdir()
    os.link(source / WEIGHTS_FILE, teacher / WEIGHTS_FILE)
    config = json.loads((source / CONFIG_FILE).read_text())
    config["encoder_config"]["causal"] = False
    (teacher / CONFIG_FILE).write_text(json.dumps(config))
    return hparams


def take_steps(
    brain: Any, dataset: Any, hparams: dict[str, Any]
) -> Iterator[Step]:
    """Train an epoch; the time between two steps does not count."""
    brain.on_fit_start()
    torch.manual_seed(0)
    brain.modules.train()
    loader = brain.make_dataloader(
        dataset, sb.Stage.TRAIN, **hparams["train_loader"]
    )
    brain._train_set = dataset
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    codec = hparams["codec"]
    frame_s = codec.decoder.hop_length / codec.sample_rate_output
    device = torch.device(brain.device)
    start = time.perf_counter()
    for batch in loader:
        sig, lengths = batch.sig
        seconds = lengths * sig.shape[1] / hparams["sample_rate"]
        if (frames := hparams.get("segment_frames")) is not None:
            seconds = seconds.clamp(max=frames * frame_s)
        loss = float(brain.fit_batch(batch))
        synchronize(device)
        yield Step(
            loss,
            time.perf_counter() - start,
            float(seconds.sum()),
            1 - float(lengths.mean()),
        )
        start = time.perf_counter()


def measure(path: Path, settings: Settings) -> Cost:
    """Take steps of a stage in this process; the first does not count."""
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    overrides: dict[str, Any] = {
        "num_workers": settings.workers,
        # In the order of the corpus the batches are alike.
        "train_loader": {"shuffle": False},
    }
    if settings.batch_size is not None:
        overrides["batch_size"] = settings.batch_size
    run_opts = {"noprogressbar": True, "device": settings.device}
    if settings.precision is not None:
        run_opts["precision"] = settings.precision
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        hparams = load_stage(path, folder, overrides, settings.model)
        rate, batch_size = hparams["sample_rate"], hparams["batch_size"]
        options = hparams["train_data_options"]
        if settings.segment is not None:
            options["segment_samples"] = round(settings.segment * rate)
        lengths = speech_lengths(batch_size) * (1 + settings.steps)
        write_noise(folder, rate, lengths)
        dataset = make_dataset(
            folder / "train.json", folder, rate, seed=hparams["seed"], **options
        )
        brain = hparams["brain"](
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
        )
        steps = take_steps(brain, dataset, hparams)
        next(steps)
        taken, memory = measure_memory(
            lambda: list(islice(steps, settings.steps)),
            torch.device(brain.device),
        )
    wall = sum(step.wall for step in taken)
    audio = sum(step.audio for step in taken)
    trained, discriminator = count_parameters(brain)
    return Cost(
        yaml=path.stem,
        model=hparams["codec"].name,
        trained=trained,
        discriminator=discriminator,
        precision=brain.precision,
        batch_size=batch_size,
        item_seconds=audio / len(taken) / batch_size,
        padding=sum(step.padding for step in taken) / len(taken),
        steps_per_second=len(taken) / wall,
        audio_per_second=audio / wall,
        peak_mib=memory.peak,
        loss=taken[-1].loss,
    )


def count_parameters(brain: Any) -> tuple[int, int]:
    """Count trained parameters, without and of a discriminator."""
    counts = {
        name: sum(x.numel() for x in module.parameters() if x.requires_grad)
        for name, module in brain.modules.items()
    }
    discriminator = counts.pop("discriminator", 0)
    return sum(counts.values()), discriminator


@app.command()
def training_speed(
    yamls: Annotated[
        str, typer.Option(help="Stages: names of shipped YAMLs, or paths.")
    ] = STAGES,
    steps: Annotated[
        int, typer.Option(min=1, help="Measured steps, after a first one.")
    ] = 2,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Utterances a step.")
    ] = None,
    segment: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds of each.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read audio.")
    ] = 0,
    model: Annotated[
        Path | None, typer.Option(help="A model's YAML, for all stages.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure training steps; without an option the YAML's value counts."""
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter(f"--device {device}: torch finds no GPU")
    paths = [find_yaml(name) for name in parse_names(yamls)]
    settings = Settings(
        steps, device, batch_size, segment, precision, workers, model
    )
    machine = describe_machine(torch.device(device))
    costs: list[Cost] = []
    for path in paths:
        try:
            costs.append(run_apart(measure, path, settings))
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            typer.echo(
                f"{path.stem}: ended, most likely because memory is short "
                f"({error}); lower --batch-size or --segment",
                err=True,
            )
            continue
        typer.echo(f"{path.stem}: measured", err=True)
        rows = [asdict(cost) for cost in costs]
        write_json(out, {"machine": machine, "results": rows})
    typer.echo(table(costs))
    if len(costs) < len(paths):
        raise typer.Exit(1)


def table(costs: Sequence[Cost]) -> str:
    """Write a row for each stage."""
    head = [
        *("YAML", "trains (M)", "batch", "padding", "steps/s"),
        *("audio in 1 s (s)", "peak memory (MiB)"),
    ]
    rows = []
    for cost in costs:
        trained = show(cost.trained / 1e6)
        if cost.discriminator:
            trained += f" + {show(cost.discriminator / 1e6)}"
        rows.append(
            [
                cost.yaml,
                trained,
                f"{cost.batch_size} x {cost.item_seconds:.2f} s",
                show(cost.padding, ".0%"),
                show(cost.steps_per_second),
                show(cost.audio_per_second),
                show(cost.peak_mib, ",.0f"),
            ]
        )
    return markdown_table(head, rows)


if __name__ == "__main__":
    app()
