"""A task trained from each input, with several seeds.

From the repository's root, for speech recognition on AN4 (extra ``test`` of
the package for what the recipes need):

    python benchmarks/downstream.py recipes/AN4/ASR/train.py \\
        hparams/downstream/asr_an4.yaml AN4 results/asr_an4

It goes on where it was interrupted, writes ``report.json`` into the folder and
prints a table: mean and standard deviation over seeds of what the recipe's
test measured. Options of the recipe follow the folder, after ``--``.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from reporting import markdown_table, parse_names, parse_numbers, write_json

from speechbrain_focalcodec.downstream.front_ends import FRONT_ENDS
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.training.run_log import METRICS_FILE, read_metrics

REPORT = "report.json"


def main(
    recipe: Annotated[Path, typer.Argument(help="The recipe's train.py.")],
    yaml: Annotated[Path, typer.Argument(help="Its hyperparameters.")],
    data: Annotated[Path, typer.Argument(help="Its data folder.")],
    out: Annotated[Path, typer.Argument(help="A folder for all runs.")],
    options: Annotated[
        list[str] | None, typer.Argument(help="More options of the recipe.")
    ] = None,
    inputs: Annotated[
        str, typer.Option(help="Inputs, with commas between them.")
    ] = ",".join(FRONT_ENDS),
    seeds: Annotated[str, typer.Option(help="Seeds, likewise.")] = "1,2,3",
) -> None:
    """Train, and compare what the tests measured."""
    out.mkdir(parents=True, exist_ok=True)
    took = {}
    if (out / REPORT).exists():
        known = json.loads((out / REPORT).read_text(encoding="utf-8"))["runs"]
        took = {(run["input"], run["seed"]): run["seconds"] for run in known}
    runs = []
    for seed in map(int, parse_numbers(seeds)):
        for kind in parse_names(inputs):
            folder = out / f"{kind}_{seed}"
            if test_stats(folder) is None:
                start = time.monotonic()
                train(recipe, yaml, data, folder, kind, seed, options or [])
                took[kind, seed] = time.monotonic() - start
            stats = test_stats(folder)
            if stats is None:
                raise DataError(f"{folder}: the run has left no test")
            # Not known of a run whose report was lost.
            seconds = took.get((kind, seed))
            runs.append(
                {"input": kind, "seed": seed, "seconds": seconds, **stats}
            )
            write_json(out / REPORT, {"runs": runs})
    print(table(runs))


def train(
    recipe: Path,
    yaml: Path,
    data: Path,
    folder: Path,
    kind: str,
    seed: int,
    options: list[str],
) -> None:
    """Run the recipe, as a user would.

    Arguments
    ---------
    recipe, yaml, data : Path
        Script, hyperparameters, data folder.
    folder : Path
        Its output folder.
    kind : str
        Its input.
    seed : int
        Its seed.
    options : list of str
        More of its options.
    """
    arguments = {
        "data_folder": data,
        "output_folder": folder,
        "input": kind,
        "seed": seed,
    }
    given = [f"--{name}={value}" for name, value in arguments.items()]
    command = [sys.executable, str(recipe), str(yaml), *given, *options]
    subprocess.run(command, check=True)


def test_stats(folder: Path) -> dict[str, Any] | None:
    """What a run's test has measured.

    Arguments
    ---------
    folder : Path
        Its output folder.

    Returns
    -------
    dict or None
        Figures by name; `None` where there was no test yet.
    """
    if not (folder / METRICS_FILE).exists():
        return None
    tests = [line for line in read_metrics(folder) if line["split"] == "test"]
    if not tests:
        return None
    return {k: v for k, v in tests[-1].items() if k not in ("split", "loss")}


def table(runs: list[dict[str, Any]]) -> str:
    """Means and standard deviations over seeds, by input.

    Arguments
    ---------
    runs : list of dict
        With ``input``, ``seed`` and figures.

    Returns
    -------
    str
        Markdown.
    """
    names = [
        name
        for name in runs[0]
        if name not in ("input", "seed", "seconds", "step", "epoch")
    ]
    rows = []
    for kind in dict.fromkeys(run["input"] for run in runs):
        own = [run for run in runs if run["input"] == kind]
        cells = [spread([run[name] for run in own]) for name in names]
        rows.append([kind, *cells, str(len(own))])
    return markdown_table(["input", *names, "seeds"], rows)


def spread(values: list[float]) -> str:
    """Mean, and the deviation where there are several.

    Arguments
    ---------
    values : list of float
        Figures.

    Returns
    -------
    str
        Such as ``"12.3 ± 0.4"``.
    """
    mean = f"{statistics.fmean(values):.1f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    typer.run(main)
