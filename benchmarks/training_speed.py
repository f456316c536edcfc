"""What training costs: steps of each stage, their speed and memory.

    python benchmarks/training_speed.py --batch-size 1 --steps 2
    python benchmarks/training_speed.py --yamls decoder,quantizer --cached \\
        --batch-size 4 --steps 4 --published SPEECHBRAIN

Each YAML is a process of its own. Its Brain is built as the recipes build it,
with random weights in the place of trained ones (speed does not depend on
them), and trains on a corpus of noise, or on the audio of --data, with the
YAML's own batches and segments unless told otherwise. The first step, which
makes the optimizer's state, does not count. What a YAML plans in the whole is
counted in hours of audio without padding, so that a small batch can stand for
a large one. It stands for the best case: a batch of one has no padding, but
makes little use of a GPU.
"""

import logging
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
import typer
from measuring import describe_machine, measure_memory, run_apart
from reporting import parse_names, write_json
from stage_steps import (
    HPARAMS,
    PUBLISHED,
    Step,
    load_stage,
    make_brain,
    take_published_steps,
    take_steps,
)
from training_report import (
    Cost,
    Pace,
    make_pace_table,
    make_table,
    read_plan,
)

from speechbrain_focalcodec.data.folder import prepare_folder
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.data.scan import WHOLE
from speechbrain_focalcodec.errors import DataError, FocalCodecError
from speechbrain_focalcodec.training.caching import use_feature_cache
from speechbrain_focalcodec.training.codec_brain import CodecBrain

app = typer.Typer(add_completion=False)

FULL_SIZE = (
    "decoder,quantizer,quantizer_25hz,quantizer_12_5hz,stream_decoder,"
    "stream_position,stream_encoder,stream_quantizer_4k,stream_joint_4k"
)
MINI = (
    "mini_decoder,mini_quantizer,mini_stream_pretraining,mini_stream_decoder,"
    "mini_stream_position,mini_stream_encoder,mini_stream_quantizer,"
    "mini_stream_joint"
)
WARM_UP = 1
# In a clone of SpeechBrain.
RECIPE = Path("recipes/LibriTTS/focalcodec")
# Lengths of made-up utterances: as LibriTTS's, 5.6 s on average.
SHORTEST, MEAN, LONGEST = 1.0, 5.6, 25.0


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Arguments
    ---------
    steps : int
        Steps to measure.
    device : str
        Where.
    batch_size : int, optional
        In place of the YAML's.
    segment : float, optional
        Seconds of each item, in place of what the YAML has.
    precision : str, optional
        In place of the YAML's.
    workers : int
        Processes that read audio.
    data : Path, optional
        A folder of audio; noise without one.
    model : Path, optional
        Another model's YAML.
    """

    steps: int = 2
    device: str = "cpu"
    batch_size: int | None = None
    segment: float | None = None
    precision: str | None = None
    workers: int = 0
    data: Path | None = None
    model: Path | None = None


def find_yaml(name: str) -> Path:
    """Find a stage's YAML.

    Arguments
    ---------
    name : str
        Of a shipped YAML, or a path.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    typer.BadParameter
        If there is none.
    """
    path = Path(name) if name.endswith(".yaml") else HPARAMS / f"{name}.yaml"
    if not path.is_file():
        found = ", ".join(sorted(path.stem for path in HPARAMS.glob("*.yaml")))
        raise typer.BadParameter(
            f"--yamls: {path} is missing; give paths, or names of {found}"
        )
    return path


def speech_lengths(count: int) -> list[float]:
    """Tell lengths of utterances that are typical together.

    Arguments
    ---------
    count : int
        How many.

    Returns
    -------
    list of float
        Seconds, at even steps of a shifted exponential distribution.

    Example
    -------
    >>> [round(length, 1) for length in speech_lengths(4)]
    [1.6, 3.2, 5.5, 10.6]
    """
    quantiles = [(i + 0.5) / count for i in range(count)]
    scale = MEAN - SHORTEST
    return [min(SHORTEST - scale * math.log1p(-q), LONGEST) for q in quantiles]


def write_noise(
    folder: Path, sample_rate: int, batch_size: int, batches: int
) -> None:
    """Write a corpus of noise whose batches, in its order, are alike.

    Arguments
    ---------
    folder : Path
        Gets `all.json` and WAV files.
    sample_rate : int
        Of the files (Hz).
    batch_size, batches : int
        Utterances in a batch, and batches.
    """
    generator = np.random.default_rng(0)
    entries = {}
    for i, length in enumerate(speech_lengths(batch_size) * batches):
        samples = round(length * sample_rate)
        sig = 0.1 * generator.standard_normal(samples)
        soundfile.write(folder / f"{i:06d}.wav", sig, sample_rate)
        entries[f"{i:06d}"] = {
            "wav": f"{{data_root}}/{i:06d}.wav",
            "num_samples": samples,
            "sample_rate": sample_rate,
            "duration": length,
        }
    write_manifest(folder / f"{WHOLE}.json", entries)


def load(path: Path, folder: Path, setting: Setting) -> dict[str, Any]:
    """Load a YAML as it is to be measured.

    Arguments
    ---------
    path : Path
        The YAML.
    folder : Path
        For what is made.
    setting : Setting
        What differs from the YAML.

    Returns
    -------
    dict
        Hyperparameters.
    """
    overrides: dict[str, Any] = {"num_workers": setting.workers}
    if setting.batch_size is not None:
        overrides["batch_size"] = setting.batch_size
    if setting.data is not None:
        overrides["data_folder"] = str(setting.data)
    else:
        # The batches are alike in the order of the corpus.
        overrides["train_loader"] = {"shuffle": False}
    hparams = load_stage(path, folder, overrides, setting.model)
    if setting.segment is not None:
        samples = round(setting.segment * hparams["sample_rate"])
        hparams["train_data_options"]["segment_samples"] = samples
    return hparams


def measure(path: Path, setting: Setting) -> Cost:
    """Take steps of a stage, in this process.

    Arguments
    ---------
    path : Path
        Its YAML.
    setting : Setting
        How.

    Returns
    -------
    Cost
        Of the steps.

    Raises
    ------
    DataError
        If the data has too few batches.
    """
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    batches = WARM_UP + setting.steps
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        hparams = load(path, folder, setting)
        if setting.data is None:
            write_noise(
                folder, hparams["sample_rate"], hparams["batch_size"], batches
            )
        else:
            prepare_folder(setting.data, folder)
        dataset = make_dataset(
            folder / f"{WHOLE}.json",
            hparams["data_folder"],
            hparams["sample_rate"],
            seed=hparams["seed"],
            **hparams["train_data_options"],
        )
        options = {"device": setting.device}
        if setting.precision is not None:
            options["precision"] = setting.precision
        brain = make_brain(hparams, options)
        steps = take_steps(brain, dataset, hparams)
        warm_up = list(islice(steps, WARM_UP))
        taken, memory = measure_memory(
            lambda: list(islice(steps, setting.steps)),
            torch.device(brain.device),
        )
        if len(taken) < setting.steps:
            raise DataError(
                f"{setting.data}: gives {len(warm_up) + len(taken)} batches of "
                f"{hparams['batch_size']}, and {batches} are needed: take more "
                "data, or lower --steps or --batch-size"
            )
    wall = sum(step.wall for step in taken)
    audio = sum(step.audio for step in taken)
    trained, discriminator = count_parameters(brain)
    return Cost(
        yaml=path.stem,
        model=hparams["codec"].name,
        plan=read_plan(path),
        trained=trained,
        discriminator=discriminator,
        precision=brain.precision,
        batch_size=hparams["batch_size"],
        steps=len(taken),
        item_seconds=audio / len(taken) / hparams["batch_size"],
        padding=sum(step.padding for step in taken) / len(taken),
        steps_per_second=len(taken) / wall,
        audio_per_second=audio / wall,
        peak_mib=memory.peak,
        loss=taken[-1].loss,
    )


def compare(path: Path, setting: Setting, published: Path | None) -> list[Pace]:
    """Take steps of a stage in several ways, in turn, on the same batches.

    Without and with a feature cache, and by the published recipe. Of each
    way the fastest step is kept: other work on the machine only slows.

    Arguments
    ---------
    path : Path
        The stage's YAML.
    setting : Setting
        How.
    published : Path, optional
        A clone of SpeechBrain.

    Returns
    -------
    list of Pace
        One a way.
    """
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    options = {"device": setting.device}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        hparams = load(path, folder, setting)
        rounds = WARM_UP + setting.steps
        batch_size = hparams["batch_size"]
        write_noise(folder, hparams["sample_rate"], batch_size, rounds)

        def dataset() -> Any:
            return make_dataset(
                folder / f"{WHOLE}.json",
                hparams["data_folder"],
                hparams["sample_rate"],
                seed=hparams["seed"],
                **hparams["train_data_options"],
            )

        ways = {
            "without cache": take_steps(
                make_brain(hparams, options), dataset(), hparams
            )
        }
        cached = load(path, folder, setting)
        cached["feature_cache"] = folder / "cache"
        features, brain = dataset(), make_brain(cached, options)
        use_feature_cache(brain, {"train": features}, cached)
        ways["with cache"] = take_steps(brain, features, cached)
        if published is not None and path.stem in PUBLISHED:
            ways["published recipe"] = take_published_steps(
                published / RECIPE,
                *(path.stem, dataset(), hparams, setting.device),
            )
        taken: dict[str, list[Step]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, steps in ways.items():
                taken[way].append(next(steps))
    paces = []
    for way, found in taken.items():
        kept = found[WARM_UP:]
        paces.append(
            Pace(
                path.stem,
                way,
                batch_size,
                sum(x.audio for x in kept) / len(kept) / batch_size,
                sum(x.padding for x in kept) / len(kept),
                min(x.wall for x in kept),
                min(x.cpu for x in kept),
                min(x.reading / x.cpu for x in kept),
            )
        )
    return paces


def count_parameters(brain: CodecBrain) -> tuple[int, int]:
    """Count what a Brain trains.

    Arguments
    ---------
    brain : CodecBrain
        The Brain.

    Returns
    -------
    trained, discriminator : int
        Parameters that learn, without and of a discriminator.
    """
    counts = {
        name: sum(x.numel() for x in module.parameters() if x.requires_grad)
        for name, module in brain.modules.items()
    }
    discriminator = counts.pop("discriminator", 0)
    return sum(counts.values()), discriminator


def measure_all(
    paths: Sequence[Path], setting: Setting, out: Path | None
) -> list[Cost]:
    """Measure YAMLs one after another; keep what there is after each.

    Arguments
    ---------
    paths : sequence of Path
        The YAMLs.
    setting : Setting
        How.
    out : Path, optional
        A JSON file to write.

    Returns
    -------
    list of Cost
        Without those that memory was too short for, which are told.
    """
    costs = []
    environment = describe_machine(torch.device(setting.device))
    for path in paths:
        try:
            cost = run_apart(measure, path, setting)
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            typer.echo(
                f"{path.stem}: ended, most likely for want of memory "
                f"({error}); lower --batch-size or --segment",
                err=True,
            )
            continue
        except FocalCodecError as error:
            raise typer.BadParameter(str(error)) from error
        costs.append(cost)
        typer.echo(
            f"{path.stem}: {1 / cost.steps_per_second:.3g} s a step", err=True
        )
        if out is not None:
            result = {
                "environment": environment,
                "results": [asdict(x) | {"hours": x.hours} for x in costs],
            }
            write_json(out, result)
    return costs


@app.command()
def training_speed(
    yamls: Annotated[
        str, typer.Option(help="Stages: names of shipped YAMLs, or paths.")
    ] = f"{FULL_SIZE},{MINI}",
    steps: Annotated[
        int, typer.Option(min=1, help="Measured steps, after a first one.")
    ] = 2,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Utterances a step, not the YAML's."),
    ] = None,
    segment: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds of each, not the YAML's."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16, not the YAML's.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read audio.")
    ] = 0,
    data: Annotated[
        Path | None, typer.Option(help="A folder of audio, not noise.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A model's YAML, for all stages.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cached: Annotated[
        bool,
        typer.Option(
            "--cached", help="Compare with and without a feature cache."
        ),
    ] = False,
    published: Annotated[
        Path | None,
        typer.Option(
            help="A clone of SpeechBrain, whose recipe is run beside ours "
            "(decoder, quantizer; with --cached)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the results as JSON.")
    ] = None,
):
    """Measure training steps of each stage: speed, memory, time in all."""
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter(f"--device {device}: torch finds no GPU")
    paths = [find_yaml(name) for name in parse_names(yamls)]
    setting = Setting(
        steps, device, batch_size, segment, precision, workers, data, model
    )
    if published is not None and not (published / RECIPE).is_dir():
        raise typer.BadParameter(f"--published: {published} has no {RECIPE}")
    if cached:
        paces = [
            pace
            for path in paths
            for pace in run_apart(compare, path, setting, published)
        ]
        typer.echo(make_pace_table(paces))
        if out is not None:
            environment = describe_machine(torch.device(device))
            results = [asdict(pace) for pace in paces]
            write_json(out, {"environment": environment, "results": results})
        return
    costs = measure_all(paths, setting, out)
    typer.echo(make_table(costs))
    if len(costs) < len(paths):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
