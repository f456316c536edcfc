"""Measures long audio: the effect of windows on tokens, and peak memory.

Examples, from the repository's root:

    python benchmarks/long_audio.py context --data DIR
    python benchmarks/long_audio.py memory --minutes 10,60,180

`context` joins utterances of a speaker to recordings of some minutes, encodes
them in a single pass and by windows, and counts the tokens and bits that
differ. ``DIR`` is LibriSpeech, or a folder of files whose names begin with the
speaker and a hyphen. `memory` resynthesises long files, each in a process of
its own, and reports the peak memory of the process.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import soundfile
import torch
import typer
from measuring import (
    CPU,
    describe_machine,
    markdown_table,
    measure_memory,
    parse_names,
    parse_numbers,
    process_peak,
    run_apart,
    show,
    write_json,
)
from speech import compare_tokens, join_utterances
from systems import MODELS, make_noise
from tqdm import tqdm

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.inference import PretrainedFocalCodec

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.command()
def context(
    data: Annotated[Path, typer.Option(help="Folder of speech.")],
    recordings: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    minutes: Annotated[float, typer.Option(help="Of each recording.")] = 2.0,
    windows: Annotated[str, typer.Option(help="In seconds.")] = "10,20,30,60",
    contexts: Annotated[
        str, typer.Option(help="On each side, in seconds.")
    ] = "0,0.5,1,2,4,8",
    models: Annotated[str, typer.Option(help="Models to try.")] = ",".join(
        MODELS
    ),
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows at once.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Count the tokens that windows change."""
    # A window is longer than its context.
    choices = [
        (window, side)
        for window, side in itertools.product(
            parse_numbers(windows, 0.02), parse_numbers(contexts)
        )
        if window > 2 * side
    ]
    rows: list[dict[str, Any]] = []
    for name in parse_names(models):
        codec = _builder(name)().to(device)
        rate = codec.sample_rate_input
        speech = join_utterances(data, recordings, 60 * minutes, rate)
        sigs = [sig[None].to(device) for sig in speech.values()]
        rows += compare_windows(codec, name, sigs, choices, batch_size)
        write_json(
            out,
            {
                "machine": describe_machine(torch.device(device)),
                "data": str(data),
                "speakers": list(speech),
                "minutes": minutes,
                "results": rows,
            },
        )
    title = f"{recordings} recordings of {minutes:g} min of real speech"
    typer.echo(f"{title}, {data}\n\n{context_table(rows)}")


@torch.inference_mode()
def compare_windows(
    codec: FocalCodec,
    name: str,
    sigs: Sequence[torch.Tensor],
    choices: Sequence[tuple[float, float]],
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """Encode recordings [1, T] by windows and in a single pass.

    Gives, for each window and context (s), the differences of the tokens and
    the seconds that encoding took.
    """
    whole = [
        codec.encode(sig, window=None)[0]
        for sig in tqdm(sigs, f"{name}, single passes", disable=None)
    ]
    rows = []
    for window, side in tqdm(choices, f"{name}, windows", disable=None):
        start = time.perf_counter()
        windowed = [
            codec.encode(
                sig, window=window, context=side, batch_size=batch_size
            )[0].cpu()
            for sig in sigs
        ]
        wall = time.perf_counter() - start
        pairs = zip(whole, windowed, strict=True)
        difference = asdict(compare_tokens(pairs, codec.quantizer.dim))
        choice = {"model": name, "window": window, "context": side}
        rows.append({**choice, **difference, "seconds": wall})
    return rows


def context_table(rows: Sequence[dict[str, Any]]) -> str:
    """Write what windows change."""
    head = [
        *("model", "window (s)", "context (s)", "tokens that differ"),
        *("worst recording", "bits that differ", "encoding (s)"),
    ]
    return markdown_table(
        head,
        [
            [
                row["model"],
                f"{row['window']:g}",
                f"{row['context']:g}",
                show(row["token_share"], ".3%"),
                show(row["worst"], ".3%"),
                show(row["bit_share"], ".4%"),
                show(row["seconds"], ".1f"),
            ]
            for row in rows
        ],
    )


def _builder(name: str) -> Callable[[], FocalCodec]:
    if name not in MODELS:
        raise typer.BadParameter(
            f"no model {name}; there are {', '.join(MODELS)}"
        )
    return MODELS[name]


def write_long(
    path: Path, seconds: float, sample_rate: int, sig: torch.Tensor
) -> None:
    """Write a long file by repeating a waveform [T], block by block."""
    missing = round(seconds * sample_rate)
    with soundfile.SoundFile(path, "w", sample_rate, 1, "PCM_16") as stream:
        while missing > 0:
            block = sig[:missing].clamp(-1, 1)
            stream.write(block.numpy())
            missing -= len(block)


def resynthesize(
    model: Path, path: Path, device: str, precision: str | None
) -> dict[str, Any]:
    """Resynthesise a file, and tell seconds and peak memory.

    The new file is written beside it. Memory (MiB) is that of the process, in
    all and above that of the loaded model.
    """
    codec = PretrainedFocalCodec.from_pretrained(
        model,
        run_opts={"device": device},
        precision=precision,
    )
    loaded = process_peak()
    start = time.perf_counter()
    # The process's memory, also when the model runs on a GPU.
    _, memory = measure_memory(
        lambda: codec.resynthesize_file(
            path, path.with_name(f"new_{path.name}")
        ),
    )
    return {
        "seconds": time.perf_counter() - start,
        "peak_mib": max(loaded, process_peak()),
        "above_mib": memory.above,
    }


@app.command()
def memory(
    minutes: Annotated[
        str, typer.Option(help="Lengths of the files.")
    ] = "10,60,180",
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(MODELS)}.")
    ] = "focalcodec-full",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; torch's choice.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="bf16 or int8; float32 without it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Resynthesise long files and report the memory it took."""
    rows: list[dict[str, Any]] = []
    if threads is not None:
        torch.set_num_threads(threads)
    machine = describe_machine(torch.device(device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codec = _builder(model)()
        codec.save_pretrained(folder / "model")
        rate = codec.sample_rate_input
        del codec
        sig = make_noise(10.0, 1, rate, CPU)[0]
        for length in parse_numbers(minutes, 0.0001):
            path = folder / "long.flac"
            write_long(path, 60 * length, rate, sig)
            row = run_apart(
                resynthesize, folder / "model", path, device, precision
            )
            speed = 60 * length / row["seconds"]
            rows.append({"minutes": length, **row, "times_real_time": speed})
            typer.echo(f"{length:g} min: {row['peak_mib']:.0f} MiB")
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


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """Write what long files took."""
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
