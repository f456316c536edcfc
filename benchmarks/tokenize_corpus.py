"""Measures `focalcodec tokenize` beside a loop over single files.

Example, from the repository's root:

    python benchmarks/tokenize_corpus.py --data LibriSpeech/train-clean-5

Both encode the same files with the same loaded model: the loop calls
`PretrainedFocalCodec.encode_file` for one after the other, which reads,
resamples and encodes; the run makes a dataset, with the start of its processes
and all that it writes. They take turns, and the fastest of each counts. Tokens
are compared one by one.
"""

import shutil
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
from speechbrain_focalcodec.corpus.run import (
    default_batch,
    default_workers,
    tokenize,
)
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
    interface: PretrainedFocalCodec,
    files: list[Path],
    batch: float,
    workers: int,
    folder: Path,
) -> tuple[dict[str, list[int]], int]:
    """Make a dataset of the same files.

    Arguments
    ---------
    interface : PretrainedFocalCodec
        The model.
    files : list of Path
        The files.
    batch : float
        Seconds of audio encoded together.
    workers : int
        Processes that read audio.
    folder : Path
        A temporary folder.

    Returns
    -------
    toks : dict
        The tokens of each file.
    size : int
        Bytes of the shards.
    """
    source = folder / "files.txt"
    source.write_text("".join(f"{f.absolute()}\n" for f in files))
    tokenize(
        source,
        folder / "tokens",
        interface,
        batch_duration=batch,
        workers=workers,
    )
    shards = sorted((folder / "tokens" / "data").iterdir())
    rows = [
        row
        for shard in shards
        for row in pq.read_table(shard, columns=["path", "tokens"]).to_pylist()
    ]
    size = sum(shard.stat().st_size for shard in shards)
    toks = {str(folder / row["path"]): row["tokens"] for row in rows}
    names = {str(f.absolute()): str(f) for f in files}
    return {names[path]: row for path, row in toks.items()}, size


def measure(
    build: Callable[[], Any],
    files: list[Path],
    device: str,
    precision: str | None,
    batch: float | None,
    workers: int | None,
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
    batch : float, optional
        Seconds of audio encoded together; the run's own choice by default.
    workers : int, optional
        Processes that read audio; the run's own choice by default.
    repeats : int
        How often each takes its turn.

    Returns
    -------
    dict
        Seconds, speed, tokens that differ and bytes.
    """
    codec = build()
    interface = PretrainedFocalCodec(
        modules={"codec": codec}, run_opts={"device": device}
    )
    accelerate(interface.codec, precision)  # type: ignore[arg-type]
    batch = default_batch(device) if batch is None else batch
    workers = default_workers(device) if workers is None else workers
    run_loop(interface, files[:3])
    loop_walls, run_walls = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        expected = run_loop(interface, files)
        synchronize(torch.device(device))
        loop_walls.append(time.perf_counter() - start)
        folder = Path(tempfile.mkdtemp())
        try:
            start = time.perf_counter()
            toks, size = run_corpus(interface, files, batch, workers, folder)
            run_walls.append(time.perf_counter() - start)
        finally:
            shutil.rmtree(folder)
    total = sum(map(len, expected.values()))
    seconds = total / codec.token_rate
    return {
        "model": codec.name,
        "precision": precision or "float32",
        "files": len(files),
        "seconds": seconds,
        "batch_duration": batch,
        "workers": workers,
        "loop_walls": loop_walls,
        "run_walls": run_walls,
        "loop_speed": seconds / min(loop_walls),
        "run_speed": seconds / min(run_walls),
        "speed_up": min(loop_walls) / min(run_walls),
        "tokens": total,
        "different": sum(
            a != b
            for name, row in expected.items()
            for a, b in zip(row, toks[name], strict=True)
        ),
        "bytes": size,
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
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU; torch's choice.")
    ] = None,
    batch_duration: Annotated[
        float | None, typer.Option(help="Seconds of a batch.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read audio.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 2,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure how fast a corpus is tokenised."""
    if threads is not None:
        torch.set_num_threads(threads)
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
                    batch_duration,
                    workers,
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
    head += ("loop (x real time)", "tokenize", "faster", "different tokens")
    head += ("bytes a token",)
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
                f"{row['different']} of {row['tokens']}",
                show(row["bytes"] / row["tokens"], ".2f"),
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    typer.run(main)
