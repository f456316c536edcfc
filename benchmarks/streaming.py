"""Measures live streams: the time of a chunk, and how many streams fit.

Example, from the repository's root:

    python benchmarks/streaming.py --options int8 --threads 2

Each causal model resynthesises noise chunk by chunk. Chunks count once its
windows are full (512 frames at full size). The full-size model has random
weights, the mini model is trained. Streams at once are the most whose steps of
one chunk each (`StreamPool`) end in time in 95 of 100 cases, with the most
threads.

With ``--published CLONE`` chunks of the published code, `compat` and this
package take turns with the same weights, 50 of them, or as many as 45 s allow.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import (
    CPU,
    describe_machine,
    markdown_table,
    parse_names,
    parse_numbers,
    show,
    time_runs,
    write_json,
)
from published import OURS, PublishedStream, build_both
from systems import (
    CAUSAL_MODELS,
    CodecSystem,
    Missing,
    OnOnnxRuntime,
    build_full_causal,
    make_noise,
)
from tqdm import tqdm

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import FocalCodecError
from speechbrain_focalcodec.streaming import StreamingResynthesizer
from speechbrain_focalcodec.streaming.latency import ChunkTimes, Spread
from speechbrain_focalcodec.streaming.pool import StreamPool

# The search for the most streams ends within a twentieth.
PRECISION = 20


@dataclass
class Settings:
    """Threads, chunks and streams to measure.

    Arguments
    ---------
    threads : list of int
        CPU threads, one after another.
    chunks, warm : int
        Chunks that count, and chunks before them, after the windows are full.
    streams : int
        The most streams at once to try; 0 for none.
    steps : int
        Steps of each number of streams.
    """

    threads: list[int]
    chunks: int = 200
    warm: int = 4
    streams: int = 1024
    steps: int = 100


@dataclass
class Result:
    """One model with an option and a number of threads.

    Arguments
    ---------
    model, option : str
        What was measured.
    threads : int
        CPU threads.
    chunk_ms : float
        Duration of a chunk.
    skipped : str, optional
        Why there are no numbers.
    seconds : list of float
        Time of each chunk.
    streams_p95_ms : dict
        95th percentile of a step by the number of streams at once.
    """

    model: str
    option: str
    threads: int
    chunk_ms: float
    skipped: str | None = None
    seconds: list[float] = field(default_factory=list)
    streams_p95_ms: dict[int, float] = field(default_factory=dict)

    @property
    def real_time_factor(self) -> float:
        """Time of all chunks over their duration."""
        return 1000 * sum(self.seconds) / (len(self.seconds) * self.chunk_ms)

    @property
    def streams(self) -> int | None:
        """The most streams whose steps end in time; None if not measured."""
        if not self.streams_p95_ms:
            return None
        times = self.streams_p95_ms.items()
        return max((n for n, p95 in times if p95 < self.chunk_ms), default=0)


def full_window(codec: FocalCodec | OnOnnxRuntime) -> int:
    """Chunks after which the longest window of a causal model is full."""
    configs = (
        codec.config.encoder_config,
        codec.config.compressor_config,
        codec.config.decompressor_config,
    )
    names = "window_size", "last_window_size"
    frames = max(getattr(c, name, 1) for c in configs for name in names)
    samples = frames * int(codec.encoder.hop_length)
    chunk_length = round(codec.latency * codec.sample_rate_input / 1000)
    return -(-samples // chunk_length)


def chunks_of(codec: Any, number: int) -> tuple[torch.Tensor, ...]:
    """Noise, cut into chunks [T]."""
    seconds = number * codec.latency / 1000
    rate = codec.sample_rate_input
    return make_noise(seconds, 1, rate, CPU)[0].split(
        round(codec.latency * rate / 1000)
    )


def time_chunks(
    codec: FocalCodec | OnOnnxRuntime, num_chunks: int, warm: int = 4
) -> list[float]:
    """Time chunks of one stream, once its windows are full (s)."""
    push: Callable[[torch.Tensor], Any]
    if isinstance(codec, OnOnnxRuntime):
        session = codec.stream()

        def push(sig: torch.Tensor) -> Any:
            return session.push(sig.numpy())
    else:
        push = StreamingResynthesizer(codec).push
    # Faster in one call than chunk by chunk.
    push(torch.cat(chunks_of(codec, full_window(codec))))
    times = ChunkTimes(codec.latency / 1000)
    for chunk in chunks_of(codec, warm + num_chunks):
        with times.chunk():
            push(chunk)
    return list(times.seconds[warm:])


def time_steps(codec: FocalCodec, streams: int, warm: int, steps: int) -> float:
    """Time steps of a pool, a chunk of each stream; 95th percentile (ms)."""
    pool = StreamPool(codec, streams)
    seconds, rate = codec.latency / 1000, codec.sample_rate_input
    sigs = make_noise(seconds, streams, rate, CPU)
    chunks = {pool.join(): sig for sig in sigs}
    walls = time_runs(lambda: pool.push(chunks), warm + steps)
    return Spread.of(walls[warm:], 1000).p95


def search_streams(
    result: Result, measure: Callable[[int], float], limit: int
) -> None:
    """Double the number of streams, then halve the gap.

    `measure` takes a number of streams and gives the 95th percentile of a
    step (ms), which goes into the result.
    """

    def ends_in_time(streams: int) -> bool:
        result.streams_p95_ms[streams] = measure(streams)
        return result.streams_p95_ms[streams] < result.chunk_ms

    good, bad = 0, 1
    while ends_in_time(bad):
        good = bad
        if good == limit:
            return
        bad = min(2 * good, limit)
    while bad - good > max(1, good // PRECISION):
        middle = (good + bad) // 2
        if ends_in_time(middle):
            good = middle
        else:
            bad = middle


def measure(
    names: Sequence[str],
    options: Sequence[str],
    settings: Settings,
    save: Callable[[list[Result]], Any] = lambda results: None,
) -> list[Result]:
    """Measure models, in float32 and with options.

    Names are those of `CAUSAL_MODELS`, or arguments of
    `FocalCodec.from_pretrained`. `save` is called with all results after each.
    """
    results: list[Result] = []
    for name in names:
        for option in (None, *options):
            label = option or "float32"
            try:
                codec = _load(name, option)
            except (Missing, FocalCodecError) as error:
                results.append(Result(name, label, 0, 0.0, str(error)))
                typer.echo(f"{name}, {label}: skipped, {error}")
                continue
            for threads in settings.threads:
                torch.set_num_threads(threads)
                result = Result(name, label, threads, codec.latency)
                results.append(result)
                result.seconds = time_chunks(
                    codec, settings.chunks, settings.warm
                )
                # A pool needs PyTorch's model.
                if threads == max(settings.threads) and not isinstance(
                    codec, OnOnnxRuntime
                ):
                    _measure_streams(result, codec, settings)
                typer.echo(chunks_table([result]).splitlines()[-1])
                save(results)
    return results


def _load(name: str, option: str | None) -> Any:
    build = CAUSAL_MODELS.get(name, lambda: FocalCodec.from_pretrained(name))
    system = CodecSystem(name, build, option)
    system.load(CPU)
    if not system.codec.causal:
        raise Missing("an offline model cannot be streamed")
    return system.codec


def _measure_streams(
    result: Result, codec: FocalCodec, settings: Settings
) -> None:
    if settings.streams:
        warm = full_window(codec) + settings.warm
        search_streams(
            result,
            lambda n: time_steps(codec, n, warm, settings.steps),
            settings.streams,
        )


def compare_published(
    clone: Path, num_chunks: int, warm: int, max_wall: float
) -> dict[str, list[float]]:
    """Time chunks of three streams in turns; seconds by name.

    Ends after `num_chunks`, or when `max_wall` seconds have passed.
    """
    codec = build_full_causal()
    streams: dict[str, Any] = {
        name: PublishedStream(model)
        for name, model in build_both(codec, clone).items()
    }
    streams[OURS] = StreamingResynthesizer(codec)
    before = torch.cat(chunks_of(codec, full_window(codec)))
    for name, stream in streams.items():
        typer.echo(f"{name}: filling its windows", err=True)
        stream.push(before)
    walls: dict[str, list[float]] = {name: [] for name in streams}
    start = time.perf_counter()
    for i, chunk in enumerate(tqdm(chunks_of(codec, warm + num_chunks))):
        if i > warm and time.perf_counter() - start > max_wall:
            break
        for name, stream in streams.items():
            walls[name] += time_runs(partial(stream.push, chunk), 1)
    return {name: times[warm:] for name, times in walls.items()}


def main(
    models: Annotated[
        str, typer.Option(help="Names below, or folders of causal models.")
    ] = ",".join(CAUSAL_MODELS),
    options: Annotated[
        str, typer.Option(help="Of bf16, int8, onnx, onnx+int8.")
    ] = "bf16,int8",
    threads: Annotated[str, typer.Option(help="CPU threads.")] = "1,2",
    chunks: Annotated[
        int | None,
        typer.Option(
            min=1, help="Chunks; by default 200, or 45 s with --published."
        ),
    ] = None,
    warm: Annotated[
        int, typer.Option(min=0, help="Chunks before, with full windows.")
    ] = 4,
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
            "beside the full-size model's, and nothing else."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure chunks of live streams, and streams at once."""
    numbers = [int(number) for number in parse_numbers(threads, 1)]
    machine = describe_machine()
    del machine["threads"]  # each result has its own
    title = f"{machine['cpu']} ({machine['cpu_capability']}), "
    title += f"torch {machine['torch']}"
    if published is not None:
        torch.set_num_threads(max(numbers))
        max_wall = 45.0 if chunks is None else math.inf
        walls = compare_published(published, chunks or 50, warm, max_wall)
        typer.echo(f"{title}\n\n{published_table(walls)}")
        write_json(out, {"machine": machine, "published": walls})
        return
    settings = Settings(numbers, chunks or 200, warm, streams, steps)

    def save(results: list[Result]) -> None:
        rows = [asdict(result) for result in results]
        head = {"machine": machine, "settings": asdict(settings)}
        write_json(out, {**head, "results": rows})

    results = measure(parse_names(models), parse_names(options), settings, save)
    save(results)
    typer.echo(f"\n{title}\n\n{chunks_table(results)}")


def spread_of(seconds: Sequence[float]) -> list[str]:
    """Percentiles of times, in milliseconds, for a table."""
    spread = Spread.of(seconds, 1000)
    return [
        f"{x:.1f}" for x in (spread.p50, spread.p95, spread.p99, spread.max)
    ]


def chunks_table(results: Sequence[Result]) -> str:
    """Write a row for each result, and a line for each that was skipped."""
    head = [
        *("model", "option", "threads", "p50 (ms)", "p95", "p99", "max"),
        *("real-time factor", "streams at once"),
    ]
    rows = [
        [
            *(result.model, result.option, str(result.threads)),
            *spread_of(result.seconds),
            f"{result.real_time_factor:.3f}",
            show(result.streams),
        ]
        for result in results
        if not result.skipped
    ]
    skipped = [
        f"\nSkipped: {result.model}, {result.option}: {result.skipped}"
        for result in results
        if result.skipped
    ]
    return "\n".join([markdown_table(head, rows), *skipped])


def published_table(walls: dict[str, list[float]]) -> str:
    """Write the fastest chunk and the percentiles."""
    return markdown_table(
        ["", "chunks", "fastest (ms)", "p50", "p95", "p99", "max"],
        [
            [name, str(len(x)), f"{1000 * min(x):.1f}", *spread_of(x)]
            for name, x in walls.items()
        ],
    )


if __name__ == "__main__":
    typer.run(main)
