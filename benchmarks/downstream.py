"""Trains a task with each kind of input and several seeds, and compares them.

Example, from the repository's root, for speech recognition on AN4 (extra
``test`` of the package):

    python benchmarks/downstream.py recipes/AN4/ASR/train.py \\
        hparams/downstream/asr_an4.yaml AN4 results/asr_an4

It writes ``report.json`` into the folder and prints mean and standard
deviation over the seeds of what the recipe's test measured. The same command
continues an interrupted comparison. Options of the recipe follow the folder,
after ``--``.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from measuring import markdown_table, parse_names, parse_numbers, write_json

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
            if read_test(folder) is None:
                arguments = {
                    "data_folder": data,
                    "output_folder": folder,
                    "input": kind,
                    "seed": seed,
                }
                given = [f"--{name}={x}" for name, x in arguments.items()]
                command = [sys.executable, str(recipe), str(yaml), *given]
                start = time.monotonic()
                subprocess.run([*command, *(options or [])], check=True)
                took[kind, seed] = time.monotonic() - start
            figures = read_test(folder)
            if figures is None:
                raise DataError(f"{folder}: the run has left no test")
            # Unknown for a run that is missing in the report.
            seconds = took.get((kind, seed))
            runs.append(
                {"input": kind, "seed": seed, "seconds": seconds, **figures}
            )
            write_json(out / REPORT, {"runs": runs})
    typer.echo(table(runs))


def read_test(folder: Path) -> dict[str, Any] | None:
    """Figures of a run's test by name; None before its test."""
    if not (folder / METRICS_FILE).exists():
        return None
    tests = [line for line in read_metrics(folder) if line["split"] == "test"]
    if not tests:
        return None
    return {k: v for k, v in tests[-1].items() if k not in ("split", "loss")}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Write means and standard deviations over seeds for each input."""
    names = [
        name
        for name in runs[0]
        if name not in ("input", "seed", "seconds", "step", "epoch")
    ]
    rows = []
    for kind in dict.fromkeys(run["input"] for run in runs):
        own = [run for run in runs if run["input"] == kind]
        cells = [mean_of([run[name] for run in own]) for name in names]
        rows.append([kind, *cells, str(len(own))])
    return markdown_table(["input", *names, "seeds"], rows)


def mean_of(values: Sequence[float]) -> str:
    """Mean, and standard deviation of several, such as ``"12.3 ± 0.4"``."""
    mean = f"{statistics.fmean(values):.1f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    typer.run(main)
