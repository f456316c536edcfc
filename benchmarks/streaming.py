"""Measures live streams: what a chunk takes, and how many streams there can be.

Example, from the repository's root:

    python benchmarks/streaming.py --options int8 --threads 2

Each model is resynthesised chunk by chunk once its windows are full (the first
512 frames of the full-size model, and some more, do not count). The full-size
model has random weights, the mini model is trained. In float32 all weights are
read once a chunk; how long that takes at the machine's memory rate, measured
around each case, is the physical limit. Streams at once need
`speechbrain_focalcodec.streaming.pool`, and are skipped by name without it.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from chunks import GIB, ChunksResult, full_window, memory_rate, time_chunks
from measuring import describe_machine
from published import chunk_table, compare_chunks
from reporting import parse_names, parse_numbers, write_json
from streaming_report import (
    chunks_table,
    draw_chunks,
    draw_streams,
    streams_table,
)
from streams import StreamsResult, find_pool, search_streams, time_steps
from systems import (
    CAUSAL_MODELS,
    CodecSystem,
    Missing,
    OnOnnxRuntime,
    build_full_causal,
)

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import FocalCodecError

FLOAT32 = "float32"
CPU = torch.device("cpu")


@dataclass
class Settings:
    """What to measure.

    Arguments
    ---------
    threads : list of int
        Of the CPU; each is measured.
    chunks : int
        Chunks of each case.
    warm : int
        Chunks before them, after the windows are full.
    read_bytes : int
        To read for the memory rate.
    streams : int
        The most streams at once to try; 0 for none.
    steps : int
        Steps of each number of streams.
    """

    threads: list[int]
    chunks: int = 500
    warm: int = 16
    read_bytes: int = 5 * GIB // 4
    streams: int = 1024
    steps: int = 100


Save = Callable[[list[ChunksResult], list[StreamsResult]], Any]


def measure(
    names: list[str],
    options: list[str],
    settings: Settings,
    save: Save = lambda chunks, streams: None,
) -> tuple[list[ChunksResult], list[StreamsResult]]:
    """Measure models one after the other, plain and with options.

    Arguments
    ---------
    names : list of str
        Of `CAUSAL_MODELS`, or what `FocalCodec.from_pretrained` takes.
    options : list of str
        ``bf16``, ``int8``, ``onnx``, ``onnx+int8``.
    settings : Settings
        What to measure.
    save : callable
        Is given the results after each case, so that none is lost.

    Returns
    -------
    chunks : list of ChunksResult
        For each model, option and number of threads.
    streams : list of StreamsResult
        For each model and option, with the most threads.
    """
    chunks: list[ChunksResult] = []
    streams: list[StreamsResult] = []
    for name in names:
        for option in [None, *options]:
            label = option or FLOAT32
            try:
                codec = _load(name, option)
            except (Missing, FocalCodecError) as error:
                chunks.append(ChunksResult(name, label, 0, 0.0, str(error)))
                typer.echo(f"{name}, {label}: skipped, {error}")
                continue
            for threads in settings.threads:
                torch.set_num_threads(threads)
                result = ChunksResult(
                    name, label, threads, float(codec.latency or 0)
                )
                _measure_chunks(result, codec, option is None, settings)
                chunks.append(result)
                typer.echo(chunks_table([result]).splitlines()[-1])
                save(chunks, streams)
            if settings.streams:
                streams.append(_measure_streams(codec, name, label, settings))
                typer.echo(streams_table(streams[-1:]).splitlines()[-1])
                save(chunks, streams)
    return chunks, streams


def _load(name: str, option: str | None) -> Any:
    """A causal model with an option."""
    build = CAUSAL_MODELS.get(name, lambda: FocalCodec.from_pretrained(name))
    system = CodecSystem(name, build, option)
    system.load(CPU)
    if not system.codec.causal:
        raise Missing("an offline model does not stream")
    return system.codec


def _measure_chunks(
    result: ChunksResult, codec: Any, exact: bool, settings: Settings
) -> None:
    """Fill in a case; without options, beside the memory's rate."""
    rates = [memory_rate(settings.read_bytes)] if exact else []
    result.seconds = time_chunks(codec, settings.chunks, settings.warm)
    if exact:
        rates.append(memory_rate(settings.read_bytes))
        result.memory_rate = statistics.mean(rates)
        result.weight_bytes = sum(
            x.numel() * x.element_size() for x in codec.parameters()
        )


def _measure_streams(
    codec: Any, name: str, label: str, settings: Settings
) -> StreamsResult:
    """Search the most streams in real time."""
    threads = max(settings.threads)
    torch.set_num_threads(threads)
    result = StreamsResult(name, label, threads, float(codec.latency or 0))
    if isinstance(codec, OnOnnxRuntime):
        result.skipped = "no pool on onnxruntime"
        return result
    frames_per_step = (codec.chunk_length or 1) / codec.encoder.hop_length
    warm = round(full_window(codec) / frames_per_step) + settings.warm
    try:
        make_pool = find_pool()
    except Missing as error:
        result.skipped = str(error)
        return result
    search_streams(
        result,
        lambda n: time_steps(make_pool, codec, n, warm, settings.steps).p95,
        settings.streams,
    )
    return result


def main(
    models: Annotated[
        str, typer.Option(help="Names below, or folders of causal models.")
    ] = ",".join(CAUSAL_MODELS),
    options: Annotated[
        str, typer.Option(help="Of bf16, int8, onnx, onnx+int8.")
    ] = "bf16,int8",
    threads: Annotated[str, typer.Option(help="Of the CPU.")] = "1,2",
    chunks: Annotated[int, typer.Option(min=1, help="Of each case.")] = 500,
    warm: Annotated[
        int, typer.Option(min=0, help="Chunks more than the windows hold.")
    ] = 16,
    read_gib: Annotated[
        float, typer.Option(help="To read for the memory rate (GiB).")
    ] = 1.25,
    streams: Annotated[
        int, typer.Option(min=0, help="The most streams to try; 0: none.")
    ] = 1024,
    steps: Annotated[
        int, typer.Option(min=1, help="Of each number of streams.")
    ] = 100,
    published: Annotated[
        Path | None,
        typer.Option(
            help="A clone of lucadellalib/focalcodec: measure its chunks "
            "beside the full-size model's, in turns, and nothing else."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Picture of chunks: png, pdf or svg; the streams' gets "
            "_streams in its name."
        ),
    ] = None,
) -> None:
    """Measure chunks and streams in real time."""
    settings = Settings(
        threads=[int(number) for number in parse_numbers(threads, 1)],
        chunks=chunks,
        warm=warm,
        read_bytes=int(read_gib * GIB),
        streams=streams,
        steps=steps,
    )
    machine = describe_machine(CPU)
    del machine["threads"]  # of each case
    title = (
        f"{machine['cpu']} ({machine['cpu_capability']}), "
        f"torch {machine['torch']}"
    )
    if published is not None:
        torch.set_num_threads(max(settings.threads))
        walls = compare_chunks(build_full_causal(), published, chunks, warm)
        typer.echo(f"{title}\n\n{chunk_table(walls)}")
        if out is not None:
            write_json(out, {"machine": machine, "published": walls})
        return

    def save(
        chunk_results: list[ChunksResult], stream_results: list[StreamsResult]
    ) -> None:
        if out is not None:
            results = to_json(chunk_results, stream_results)
            head = {"machine": machine, "settings": asdict(settings)}
            write_json(out, head | results)

    results = measure(parse_names(models), parse_names(options), settings, save)
    save(*results)
    typer.echo(f"\n{title}\n\n{chunks_table(results[0])}")
    if results[1]:
        typer.echo(f"\n{streams_table(results[1])}")
    if picture is not None:
        draw_chunks(results[0], picture, title)
        draw_streams(
            results[1], picture.with_stem(f"{picture.stem}_streams"), title
        )


def to_json(
    chunks: list[ChunksResult], streams: list[StreamsResult]
) -> dict[str, Any]:
    """Turn results into what JSON can hold.

    Arguments
    ---------
    chunks : list of ChunksResult
        From :func:`measure`.
    streams : list of StreamsResult
        From :func:`measure`.

    Returns
    -------
    dict
        Ready for JSON.
    """
    return {
        "chunks": [
            asdict(result)
            | {
                "ms": result.spread and asdict(result.spread),
                "real_time_factor": result.real_time_factor,
                "memory_share": result.memory_share,
            }
            for result in chunks
        ],
        "streams": [
            asdict(result) | {"most": result.most} for result in streams
        ],
    }


if __name__ == "__main__":
    typer.run(main)
