"""Measures `focalcodec tokenize` beside a loop over single files.

Example, from the repository's root:

    python benchmarks/tokenize_corpus.py --data LibriSpeech/train-clean-5

The loop calls `PretrainedFocalCodec.encode_file` (read, resample, encode) for
one file after another, with a model that is loaded and warm. The command runs
in processes of its own. Its speed counts from the first batch; the wall time
includes loading Python and the models. Both take turns, and the fastest turn
of each counts. Their tokens are compared.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import torch
import typer
from measuring import (
    describe_machine,
    markdown_table,
    parse_names,
    show,
    synchronize,
    write_json,
)
from speech import find_clips
from systems import MODELS

from speechbrain_focalcodec.acceleration import accelerate
from speechbrain_focalcodec.inference import PretrainedFocalCodec


def run_command(
    model: Path, files: Sequence[Path], options: list[str], folder: Path
) -> dict[str, Any]:
    """Run `focalcodec tokenize` in a new folder.

    Gives the tokens of each file, times real time, seconds and bytes.
    """
    folder.mkdir()
    source = folder / "files.txt"
    source.write_text("".join(f"{f.absolute()}\n" for f in files))
    command = [sys.executable, "-m", "speechbrain_focalcodec.cli", "tokenize"]
    command += [str(source), str(folder / "tokens"), "--model", str(model)]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, *options, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    wall = time.perf_counter() - start
    shards = sorted((folder / "tokens" / "data").iterdir())
    rows = [
        row
        for shard in shards
        for row in pq.read_table(shard, columns=["path", "tokens"]).to_pylist()
    ]
    names = {str(f.absolute()): str(f) for f in files}
    return {
        "toks": {names[str(folder / r["path"])]: r["tokens"] for r in rows},
        "speed": json.loads(done.stdout)["times_real_time"],
        "wall": wall,
        "bytes": sum(shard.stat().st_size for shard in shards),
    }


def measure(
    build: Callable[[], Any],
    files: Sequence[Path],
    device: str,
    precision: str | None,
    options: Sequence[str],
    repeats: int,
) -> dict[str, Any]:
    """Measure the loop and the command on the same files, in turns."""
    codec = build()
    given = ["--device", device, *options]
    if precision is not None:
        given += ["--precision", precision]
    walls, runs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codec.save_pretrained(folder / "model")
        interface = PretrainedFocalCodec(
            modules={"codec": codec}, run_opts={"device": device}
        )
        accelerate(interface.codec, precision)

        def loop(paths: Sequence[Path]) -> dict[str, list[int]]:
            return {str(x): interface.encode_file(x).tolist() for x in paths}

        loop(files[:3])  # to warm up
        for turn in range(repeats):
            start = time.perf_counter()
            expected = loop(files)
            synchronize(torch.device(device))
            walls.append(time.perf_counter() - start)
            model = folder / "model"
            runs.append(run_command(model, files, given, folder / str(turn)))
    total = sum(map(len, expected.values()))
    seconds = total / codec.token_rate
    loop_speed = seconds / min(walls)
    run_speed = max(run["speed"] for run in runs)
    return {
        "model": codec.name,
        "precision": precision or "float32",
        "files": len(files),
        "seconds": seconds,
        "options": given,
        "loop_speed": loop_speed,
        "run_speed": run_speed,
        "run_wall": min(run["wall"] for run in runs),
        "speed_up": run_speed / loop_speed,
        "tokens": total,
        "different": sum(
            a != b
            for name, row in expected.items()
            for a, b in zip(row, runs[-1]["toks"][name], strict=True)
        ),
        "bytes": runs[-1]["bytes"],
    }


def main(
    data: Annotated[
        list[Path], typer.Option(help="Folders of real speech, one by one.")
    ],
    systems: Annotated[
        str, typer.Option(help=f"Of {', '.join(MODELS)}.")
    ] = ",".join(MODELS),
    options: Annotated[
        str, typer.Option(help="Besides float32: bf16, int8.")
    ] = "",
    clips: Annotated[
        int | None, typer.Option(min=3, help="Files of each folder; all.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    run_options: Annotated[
        str, typer.Option(help="Of the command, such as '--processes 1'.")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 2,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure how fast a corpus is tokenised."""
    names = parse_names(systems)
    if unknown := set(names) - MODELS.keys():
        raise typer.BadParameter(f"no system {', '.join(sorted(unknown))}")
    machine = describe_machine(torch.device(device))
    rows: list[dict[str, Any]] = []
    for name in names:
        for precision in (None, *parse_names(options)):
            for folder in data:
                result = measure(
                    MODELS[name],
                    find_clips(folder, clips),
                    device,
                    precision,
                    run_options.split(),
                    repeats,
                )
                rows.append({"data": folder.name, **result})
                typer.echo(f"{name} {folder.name}: {result['speed_up']:.2f}")
                write_json(out, {"machine": machine, "results": rows})
    typer.echo(f"\n{machine['cpu']}, {machine['threads']} threads\n")
    typer.echo(table(rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write a row for each model, precision and folder."""
    head = ("model", "precision", "data", "files", "mean length (s)")
    head += ("loop (x real time)", "tokenize", "faster", "wall (s)")
    head += ("different tokens", "bytes a token")
    return markdown_table(
        head,
        [
            (
                row["model"],
                row["precision"],
                row["data"],
                str(row["files"]),
                show(row["seconds"] / row["files"], ".1f"),
                show(row["loop_speed"], ".1f"),
                show(row["run_speed"], ".1f"),
                show(row["speed_up"], ".2f"),
                show(row["run_wall"], ".1f"),
                f"{row['different']} of {row['tokens']}",
                show(row["bytes"] / row["tokens"], ".2f"),
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    typer.run(main)
