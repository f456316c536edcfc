"""Measures `focalcodec tokenize` beside a loop over single files.

Example, from the repository's root:

    python benchmarks/tokenize_corpus.py --data LibriSpeech/train-clean-5

The loop calls `PretrainedFocalCodec.encode_file` for one file after the other,
which reads, resamples and encodes; its model is loaded and warm. The run is the
command, in processes of its own. Its speed counts from the first batch that it
could begin; the wall time holds all, loading of Python and of the models too.
They take turns, and the fastest of each counts. Tokens are compared one by one.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import torch
import typer
from measuring import describe_machine, synchronize
from reporting import markdown_table, parse_names, show, write_json
from systems import MODELS

from speechbrain_focalcodec.acceleration import accelerate
from speechbrain_focalcodec.audio import find_audio_files
from speechbrain_focalcodec.inference import PretrainedFocalCodec


def choose(folder: Path, number: int | None) -> list[Path]:
    """Take files of a folder, evenly spread.

    Arguments
    ---------
    folder : Path
        The folder.
    number : int, optional
        How many; all by default.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    typer.BadParameter
        If there are none.
    """
    files = find_audio_files(folder)
    if not files:
        raise typer.BadParameter(f"{folder}: has no audio", param_hint="--data")
    step = max(1, len(files) // number) if number else 1
    return files[::step][:number]


def run_loop(
    interface: PretrainedFocalCodec, files: list[Path]
) -> dict[str, list[int]]:
    """Encode files one by one.

    Arguments
    ---------
    interface : PretrainedFocalCodec
        The model.
    files : list of Path
        The files.

    Returns
    -------
    dict
        The tokens of each file.
    """
    return {str(f): interface.encode_file(f).tolist() for f in files}


def run_corpus(
    model: Path, files: list[Path], options: list[str], folder: Path
) -> dict[str, Any]:
    """Make a dataset of the same files.

    Arguments
    ---------
    model : Path
        The model's folder.
    files : list of Path
        The files.
    options : list of str
        Of the command.
    folder : Path
        A temporary folder.

    Returns
    -------
    dict
        The tokens of each file, times real time, seconds and bytes.
    """
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
    files: list[Path],
    device: str,
    precision: str | None,
    options: list[str],
    repeats: int,
) -> dict[str, Any]:
    """Measure one model on some files.

    Arguments
    ---------
    build : callable
        Gives the codec.
    files : list of Path
        The files.
    device : str
        Where to encode.
    precision : str, optional
        ``bf16`` or ``int8``.
    options : list of str
        More options of the command.
    repeats : int
        How often each takes its turn.

    Returns
    -------
    dict
        Seconds, speed, tokens that differ and bytes.
    """
    codec = build()
    temporary = Path(tempfile.mkdtemp())
    try:
        codec.save_pretrained(temporary / "model")
        options = ["--device", device, *options]
        if precision is not None:
            options += ["--precision", precision]
        interface = PretrainedFocalCodec(
            modules={"codec": codec}, run_opts={"device": device}
        )
        accelerate(interface.codec, precision)  # type: ignore[arg-type]
        run_loop(interface, files[:3])
        walls, runs = [], []
        for number in range(repeats):
            start = time.perf_counter()
            expected = run_loop(interface, files)
            synchronize(torch.device(device))
            walls.append(time.perf_counter() - start)
            folder = temporary / str(number)
            folder.mkdir()
            model = temporary / "model"
            runs.append(run_corpus(model, files, options, folder))
    finally:
        shutil.rmtree(temporary)
    total = sum(map(len, expected.values()))
    seconds = total / codec.token_rate
    loop_speed = seconds / min(walls)
    run_speed = max(run["speed"] for run in runs)
    return {
        "model": codec.name,
        "precision": precision or "float32",
        "files": len(files),
        "seconds": seconds,
        "options": options,
        "loop_walls": walls,
        "run_walls": [run["wall"] for run in runs],
        "run_speeds": [run["speed"] for run in runs],
        "loop_speed": loop_speed,
        "run_speed": run_speed,
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
                    choose(folder, clips),
                    device,
                    precision,
                    run_options.split(),
                    repeats,
                )
                rows.append({"data": folder.name, **result})
                typer.echo(f"{name} {folder.name}: {result['speed_up']:.2f}")
                if out is not None:
                    write_json(out, {"machine": machine, "results": rows})
    typer.echo(f"\n{machine['cpu']}, {machine['threads']} threads\n")
    typer.echo(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Write results as a table.

    Arguments
    ---------
    rows : list of dict
        From :func:`measure`, with the name of the data.

    Returns
    -------
    str
        Markdown.
    """
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
                show(min(row["run_walls"]), ".1f"),
                f"{row['different']} of {row['tokens']}",
                show(row["bytes"] / row["tokens"], ".2f"),
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    typer.run(main)
