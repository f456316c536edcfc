"""Measures long audio: what windows change, and the memory they take.

Examples, from the repository's root:

    python benchmarks/long_audio.py context --data DIR
    python benchmarks/long_audio.py memory --minutes 10,60,180

`context` encodes recordings of some minutes (``DIR`` is a folder of speech
whose files' names begin with the speaker and a hyphen, as LibriSpeech's do;
utterances of one speaker are joined) in a single pass and by windows, and
counts the tokens and bits that differ. `memory` resynthesises files of any
length, each in a process of its own, and tells the most memory that it held.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import soundfile
import torch
import typer
from measuring import describe_machine, measure_memory, process_peak
from reporting import (
    markdown_table,
    parse_names,
    parse_numbers,
    show,
    write_json,
)
from speech import join_utterances
from systems import MODELS, make_noise
from window_context import (
    Windowed,
    compare_windows,
    draw_windows,
    windows_table,
)

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.inference import PretrainedFocalCodec

app = typer.Typer(help=__doc__, no_args_is_help=True)

BLOCK_S = 10.0


@app.command()
def context(
    data: Annotated[Path, typer.Option(help="Folder of speech.")],
    recordings: Annotated[
        int, typer.Option(min=1, help="Recordings to make.")
    ] = 3,
    minutes: Annotated[float, typer.Option(help="Of each recording.")] = 2.0,
    speakers: Annotated[
        int, typer.Option(min=1, help="In each recording.")
    ] = 1,
    windows: Annotated[
        str, typer.Option(help="Windows to try (s).")
    ] = "10,20,30,60",
    contexts: Annotated[
        str, typer.Option(help="Contexts to try, on each side (s).")
    ] = "0,0.5,1,2,4,8",
    models: Annotated[str, typer.Option(help="Models to try.")] = ",".join(
        MODELS
    ),
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows at once.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture: png, pdf or svg.")
    ] = None,
) -> None:
    """Count the tokens that windows change."""
    pairs = list(
        itertools.product(parse_numbers(windows, 0.02), parse_numbers(contexts))
    )
    # A window holds its context.
    choices = [(window, side) for window, side in pairs if window > 2 * side]
    for window, side in pairs:
        if window <= 2 * side:
            typer.echo(f"skipped: a context of {side:g} s fills {window:g} s")
    results: list[Windowed] = []
    for name in parse_names(models):
        codec = _model(name)().to(device)
        speech = join_utterances(
            data,
            recordings,
            60 * minutes,
            codec.sample_rate_input,
            speakers,
        )
        results += compare_windows(
            codec, name, list(speech.values()), choices, batch_size
        )
        if out is not None:
            write_json(
                out,
                {
                    "machine": describe_machine(torch.device(device)),
                    "data": str(data),
                    "speakers": list(speech),
                    "minutes": minutes,
                    "results": [
                        asdict(row)
                        | {
                            "token_share": row.difference.token_share,
                            "bit_share": row.difference.bit_share,
                        }
                        for row in results
                    ],
                },
            )
    title = f"{recordings} recordings of {minutes:g} min of real speech"
    typer.echo(f"{title}, {data}\n\n{windows_table(results)}")
    if picture is not None:
        draw_windows(results, picture, title)


def _model(name: str) -> Callable[[], FocalCodec]:
    if name not in MODELS:
        raise typer.BadParameter(
            f"no model {name}; there are {', '.join(MODELS)}"
        )
    return MODELS[name]


def write_long(
    path: Path, seconds: float, sample_rate: int, sig: torch.Tensor
) -> None:
    """Write a long file, block by block.

    Arguments
    ---------
    path : Path
        WAV or FLAC, by its suffix.
    seconds : float
        Length to write.
    sample_rate : int
        In Hz.
    sig : torch.Tensor
        Waveform [T] to repeat.
    """
    missing = round(seconds * sample_rate)
    with soundfile.SoundFile(path, "w", sample_rate, 1, "PCM_16") as stream:
        while missing > 0:
            block = sig[:missing].clamp(-1, 1)
            stream.write(block.numpy())
            missing -= len(block)


def resynthesize_in_process(
    model: Path,
    path: Path,
    threads: int | None,
    device: str,
    precision: str | None = None,
) -> dict[str, Any]:
    """Resynthesise a file in a process of its own.

    Arguments
    ---------
    model : Path
        The model's folder.
    path : Path
        The file; the new one is written beside it.
    threads : int, optional
        Of torch.
    device : str
        Where the model runs.
    precision : str, optional
        ``bf16`` or ``int8``.

    Returns
    -------
    dict
        Seconds, and mebibytes that the process held at most, and at most
        above what it held when the model was loaded.
    """
    command = [sys.executable, __file__, "one", str(model), str(path)]
    command += ["--device", device]
    if threads is not None:
        command += ["--threads", str(threads)]
    if precision is not None:
        command += ["--precision", precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@app.command(hidden=True)
def one(
    model: Path,
    path: Path,
    device: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
) -> None:
    """Resynthesise one file and print what it took; `memory` calls this."""
    if threads is not None:
        torch.set_num_threads(threads)
    codec = PretrainedFocalCodec.from_pretrained(
        model,
        run_opts={"device": device},
        precision=precision,  # type: ignore[arg-type]
    )
    loaded = process_peak()
    start = time.perf_counter()
    _, memory = measure_memory(
        lambda: codec.resynthesize_file(
            path, path.with_name(f"new_{path.name}")
        ),
        # The process's memory, wherever the model runs.
        torch.device("cpu"),
    )
    result = {
        "seconds": time.perf_counter() - start,
        "peak_mib": max(loaded, process_peak()),
        "above_mib": memory.above,
    }
    typer.echo(json.dumps(result))


@app.command()
def memory(
    minutes: Annotated[
        str, typer.Option(help="Lengths of the files.")
    ] = "10,60,180",
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(MODELS)}.")
    ] = "focalcodec-full",
    data: Annotated[
        Path | None,
        typer.Option(help="Speech to repeat; noise without it."),
    ] = None,
    suffix: Annotated[
        str, typer.Option(help="Of the files: .flac or .wav.")
    ] = ".flac",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU; torch's choice.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="bf16 or int8; float32 without it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Resynthesise long files and tell the memory it took."""
    rows: list[dict[str, Any]] = []
    # Here for the description alone: each process sets its own.
    if threads is not None:
        torch.set_num_threads(threads)
    machine = describe_machine(torch.device(device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codec = _model(model)()
        codec.save_pretrained(folder / "model")
        rate = codec.sample_rate_input
        del codec
        if data is None:
            sig = make_noise(BLOCK_S, 1, rate, torch.device("cpu"))[0]
        else:
            [sig] = join_utterances(data, 1, 60.0, rate).values()
        for length in parse_numbers(minutes, 0.0001):
            path = folder / f"long{suffix}"
            write_long(path, 60 * length, rate, sig)
            row = resynthesize_in_process(
                folder / "model", path, threads, device, precision
            )
            row["minutes"] = length
            row["times_real_time"] = 60 * length / row["seconds"]
            rows.append(row)
            typer.echo(f"{length:g} min: {row['peak_mib']:.0f} MiB")
            if out is not None:
                write_json(
                    out,
                    {
                        "machine": machine,
                        "model": model,
                        "precision": precision or "float32",
                        "results": rows,
                    },
                )
    typer.echo(f"\n{model}, {machine['cpu']}\n\n{memory_table(rows)}")


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Write what long files took.

    Arguments
    ---------
    rows : list of dict
        From :func:`memory`.

    Returns
    -------
    str
        Markdown.
    """
    head = [
        *("audio (min)", "peak memory (MiB)", "above the loaded model (MiB)"),
        *("time (s)", "x real time"),
    ]
    return markdown_table(
        head,
        [
            [
                f"{row['minutes']:g}",
                f"{row['peak_mib']:.0f}",
                show(row["above_mib"], ".0f"),
                f"{row['seconds']:.1f}",
                f"{row['times_real_time']:.2f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    app()
