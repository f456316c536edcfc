"""Speed of the quantizer stage with and without a feature cache.

    python benchmarks/feature_cache.py --data DATA

DATA is a folder of LibriSpeech (with the split as a sub-folder). The encoder
has random weights: speed does not depend on them. Both runs take the same
batches of whole utterances in the same order; a step's time counts from
asking the loader for the batch to the optimizer's step.
"""

import logging
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import count_work, describe_machine
from reporting import markdown_table, parse_names, show, write_json
from stage_steps import HPARAMS, load_stage, make_brain, take_steps

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.librispeech import prepare_librispeech
from speechbrain_focalcodec.data.manifest import read_manifest, write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.training.caching import use_feature_cache

app = typer.Typer(add_completion=False)

WARM_UP = 2


@dataclass(frozen=True)
class Result:
    """What a cache changes for one YAML.

    Arguments
    ---------
    yaml, encoder : str
        The stage's YAML and its encoder.
    batch_size : int
        Utterances a step.
    seconds : float
        Mean length of the utterances.
    without, cached : float
        Steps a second.
    making : float
        Speech encoded into the cache in a second (s).
    limit : float
        Speed-up by multiply-accumulates.
    gigabytes : float
        On disk, an hour of speech (10^9 bytes).
    losses : list of float
        Mean training loss of the measured steps, without and with the cache.
    """

    yaml: str
    encoder: str
    batch_size: int
    seconds: float
    without: float
    cached: float
    making: float
    limit: float
    gigabytes: float
    losses: list[float]


def choose(
    data: Path, split: str, folder: Path, seconds: float, num: int
) -> float:
    """Write a manifest of the longest utterances up to a length.

    Arguments
    ---------
    data : Path
        The data folder.
    split : str
        Of it.
    folder : Path
        Where to write `train.json`.
    seconds : float
        The greatest length.
    num : int
        Utterances to take.

    Returns
    -------
    float
        Seconds of all of them.

    Raises
    ------
    typer.BadParameter
        If there are not so many.
    """
    paths = prepare_librispeech(data, folder, [split])
    entries = read_manifest(paths[split])
    short = [i for i, x in entries.items() if x["duration"] <= seconds]
    short.sort(key=lambda i: -entries[i]["duration"])
    if len(short) < num:
        raise typer.BadParameter(
            f"{split} has {len(short)} utterances of up to {seconds} s; "
            f"{num} are needed: raise --seconds, or lower --steps"
        )
    chosen = {i: entries[i] for i in short[:num]}
    write_manifest(folder / "train.json", chosen)
    return sum(entry["duration"] for entry in chosen.values())


def load(
    yaml: str, data: Path, folder: Path, batch_size: int, workers: int
) -> dict[str, Any]:
    """Load a stage's YAML for whole utterances and a random encoder.

    Arguments
    ---------
    yaml : str
        Its name.
    data : Path
        The data folder.
    folder : Path
        For what is made.
    batch_size, workers : int
        Of the loader.

    Returns
    -------
    dict
        Hyperparameters.
    """
    overrides = {
        "data_folder": str(data),
        "batch_size": batch_size,
        "num_workers": workers,
        "number_of_epochs": 1,
        "train_data_options": {"segment_samples": None},
    }
    return load_stage(HPARAMS / f"{yaml}.yaml", folder, overrides)


def train(
    hparams: dict[str, Any],
    options: dict[str, Any],
    cache: Path | None,
    speech: float,
) -> tuple[float, float, float]:
    """Train one epoch.

    Arguments
    ---------
    hparams : dict
        Of :func:`load`.
    options : dict
        SpeechBrain's run options.
    cache : Path, optional
        The cache, which is made first.
    speech : float
        Seconds of all utterances.

    Returns
    -------
    tuple of float
        Steps a second, mean loss, and speech encoded in a second (s).
    """
    dataset = make_dataset(
        Path(hparams["output_folder"]).parent / "train.json",
        hparams["data_folder"],
        hparams["sample_rate"],
    )
    brain = make_brain(hparams, options)
    making = 0.0
    if cache is not None:
        hparams |= {"feature_cache": str(cache), "train_data_options": {}}
        start = time.perf_counter()
        use_feature_cache(brain, {"train": dataset}, hparams)
        making = speech / (time.perf_counter() - start)
    steps = list(take_steps(brain, dataset, hparams))[WARM_UP:]
    rate = 1 / statistics.median(step.wall for step in steps)
    return rate, statistics.fmean(step.loss for step in steps), making


def limit(codec: FocalCodec, seconds: float) -> float:
    """Tell the speed-up that multiply-accumulates allow.

    Arguments
    ---------
    codec : FocalCodec
        The codec.
    seconds : float
        Length of an utterance.

    Returns
    -------
    float
        Work of a step without a cache, by that with it.
    """
    device = next(codec.parameters()).device
    lengths = torch.tensor([int(seconds * codec.sample_rate_input)])
    sig = torch.randn(1, int(lengths), device=device)
    lengths = lengths.to(device)
    with torch.no_grad():
        feats, frames = codec.sig_to_feats(sig, lengths)

    def reconstruct():
        lats = codec.compressor(feats, frames)
        tokens = codec.compressor.output_lengths(frames)
        return codec.decompressor(lats, tokens)

    encoder = count_work(lambda: codec.sig_to_feats(sig, lengths)).total
    trained = 3 * count_work(reconstruct).total
    return (encoder + trained) / trained


def compare(
    yaml: str,
    data: Path,
    split: str,
    seconds: float,
    batch_size: int,
    steps: int,
    workers: int,
    device: str,
) -> Result:
    """Train with and without a cache.

    Arguments
    ---------
    yaml : str
        Name of the stage's YAML.
    data : Path
        The data folder.
    split : str
        Of it.
    seconds : float
        The greatest length of an utterance.
    batch_size, steps, workers : int
        Utterances a step, timed steps, and processes that read.
    device : str
        Where.

    Returns
    -------
    Result
        Of both.
    """
    options = {"device": device, "precision": "fp32"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num = (steps + WARM_UP) * batch_size
        speech = choose(data, split, folder, seconds, num)
        rates, losses = [], []
        for cache in (None, folder / "cache"):
            hparams = load(yaml, data, folder, batch_size, workers)
            rate, loss, making = train(hparams, options, cache, speech)
            rates.append(rate)
            losses.append(loss)
        size = sum(
            path.stat().st_size for path in (folder / "cache").rglob("*.*")
        )
    return Result(
        yaml,
        hparams["codec"].config.encoder_name,
        batch_size,
        speech / num,
        *rates,
        making,
        limit(hparams["codec"], speech / num),
        size / 1e9 / speech * 3600,
        losses,
    )


def make_table(results: list[Result]) -> str:
    """Write the results as a Markdown table.

    Arguments
    ---------
    results : list of Result
        The rows.

    Returns
    -------
    str
        The table.
    """
    head = [
        "YAML",
        "encoder",
        "batch",
        "steps/s without",
        "steps/s with",
        "speed-up",
        "limit",
        "made at (x real time)",
        "GB an hour",
    ]
    rows = [
        [
            result.yaml,
            result.encoder,
            f"{result.batch_size} x {result.seconds:.1f} s",
            show(result.without),
            show(result.cached),
            f"{result.cached / result.without:.2f}",
            f"{result.limit:.2f}",
            show(result.making),
            show(result.gigabytes),
        ]
        for result in results
    ]
    return markdown_table(head, rows)


@app.command()
def feature_cache(
    data: Annotated[Path, typer.Option(help="A folder of LibriSpeech.")],
    split: Annotated[str, typer.Option(help="Of it.")] = "train-clean-5",
    yamls: Annotated[
        str, typer.Option(help="Stages, by their YAMLs' names.")
    ] = "quantizer,mini_quantizer",
    seconds: Annotated[
        float, typer.Option(min=0.1, help="The longest utterance.")
    ] = 6.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Utterances.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 8,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Write the results as JSON.")
    ] = None,
):
    """Measure the quantizer stage with and without cached features."""
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    results = [
        compare(yaml, data, split, seconds, batch_size, steps, workers, device)
        for yaml in parse_names(yamls)
    ]
    typer.echo(make_table(results))
    for result in results:
        typer.echo(f"{result.yaml}: losses {result.losses}")
    if out is not None:
        environment = describe_machine(torch.device(device))
        write_json(
            out,
            {
                "environment": environment,
                "results": [asdict(result) for result in results],
            },
        )


if __name__ == "__main__":
    app()
