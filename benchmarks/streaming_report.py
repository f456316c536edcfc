"""Tables and pictures of the benchmark of live streams."""

from pathlib import Path
from typing import Any

import numpy as np
from chunks import ChunksResult
from reporting import (
    label_ticks,
    make_figure,
    markdown_table,
    save_figure,
    show,
)
from streams import StreamsResult

COLOURS = {"float32": "tab:blue", "bf16": "tab:orange", "int8": "tab:green"}
STYLES = ["-", "--", ":", "-."]
TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


def chunks_table(results: list[ChunksResult]) -> str:
    """Write each case as a row, and name what was skipped.

    Arguments
    ---------
    results : list of ChunksResult
        Of all models.

    Returns
    -------
    str
        Markdown.
    """
    head = [
        *("model", "option", "threads", "p50 (ms)", "p95", "p99", "max"),
        *("real-time factor", "weights (GB)", "memory (GB/s)"),
        "share of memory rate",
    ]
    rows = []
    for result in results:
        spread = result.spread
        if spread is None:
            continue
        rows.append(
            [
                *(result.model, result.option, str(result.threads)),
                f"{spread.p50:.1f}",
                f"{spread.p95:.1f}",
                f"{spread.p99:.1f}",
                f"{spread.max:.1f}",
                show(result.real_time_factor, ".3f"),
                show(_giga(result.weight_bytes), ".3f"),
                show(_giga(result.memory_rate), ".1f"),
                show(result.memory_share, ".0%"),
            ]
        )
    return "\n".join([markdown_table(head, rows), *_skipped(results)])


def streams_table(results: list[StreamsResult]) -> str:
    """Write how many streams are in real time.

    Arguments
    ---------
    results : list of StreamsResult
        Of all models.

    Returns
    -------
    str
        Markdown.
    """
    head = [
        *("model", "option", "threads", "chunk (ms)"),
        *("streams in real time", "p95 of a step (ms)"),
    ]
    rows = [
        [
            *(result.model, result.option, str(result.threads)),
            f"{result.chunk_ms:g}",
            str(result.most),
            show(result.p95_ms.get(result.most), ".1f"),
        ]
        for result in results
        if not result.skipped
    ]
    return "\n".join([markdown_table(head, rows), *_skipped(results)])


def _giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def _skipped(results: Any) -> list[str]:
    return [
        f"\nSkipped: {result.model}, {result.option}: {result.skipped}"
        for result in results
        if result.skipped
    ]


def draw_chunks(results: list[ChunksResult], path: Path, title: str) -> None:
    """Draw which share of the chunks takes longer than a time.

    Arguments
    ---------
    results : list of ChunksResult
        Of all models: a panel for each, a line for each case.
    path : Path
        The picture; not written when there are no numbers.
    title : str
        Where and with what it was measured.
    """
    results = [result for result in results if result.seconds]
    models = list(dict.fromkeys(result.model for result in results))
    threads = sorted({result.threads for result in results})
    if not models:
        return
    figure, grid = make_figure(1, len(models), (5.2, 3.8))
    figure.suptitle(title, fontsize="small")
    for axes, model in zip(grid[0], models, strict=True):
        shown = [result for result in results if result.model == model]
        for result in shown:
            times = 1000 * np.sort(result.seconds)
            shares = 1 - np.arange(len(times)) / len(times)
            axes.step(
                times,
                100 * shares,
                where="pre",
                color=COLOURS.get(result.option),
                linestyle=STYLES[threads.index(result.threads) % len(STYLES)],
                label=f"{result.option}, threads: {result.threads}",
            )
        limit = shown[0].chunk_ms
        axes.axvline(limit, color="0.6", label=f"the chunk, {limit:g} ms")
        axes.set(yscale="log", xlabel="time of a chunk (ms)")
        axes.set_xlim(left=0)
        axes.set_ylabel("chunks that take at least as long (%)")
        axes.set_title(model, loc="left")
        label_ticks(axes.yaxis, [100, 50, 10, 5, 1])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower left")
    save_figure(figure, path)


def draw_streams(results: list[StreamsResult], path: Path, title: str) -> None:
    """Draw what a step takes over the number of streams.

    Arguments
    ---------
    results : list of StreamsResult
        Of all models: a panel for each, a line for each option.
    path : Path
        The picture; not written when there are no numbers.
    title : str
        Where and with what it was measured.
    """
    results = [result for result in results if result.p95_ms]
    models = list(dict.fromkeys(result.model for result in results))
    if not models:
        return
    figure, grid = make_figure(1, len(models), (5.2, 3.8))
    figure.suptitle(title, fontsize="small")
    for axes, model in zip(grid[0], models, strict=True):
        shown = [result for result in results if result.model == model]
        for result in shown:
            numbers = sorted(result.p95_ms)
            axes.plot(
                numbers,
                [result.p95_ms[number] for number in numbers],
                marker="o",
                markersize=4,
                color=COLOURS.get(result.option),
                label=f"{result.option}, threads: {result.threads}",
            )
        limit = shown[0].chunk_ms
        axes.axhline(limit, color="0.6", label=f"the chunk, {limit:g} ms")
        axes.set(xscale="log", yscale="log", xlabel="streams at once")
        axes.set_ylabel("p95 of a step (ms)")
        axes.set_title(model, loc="left")
        numbers = {n for result in shown for n in result.p95_ms}
        # The doubled ones; the rest lies between them.
        label_ticks(axes.xaxis, sorted(n for n in numbers if not n & (n - 1)))
        low, high = axes.get_ylim()
        label_ticks(axes.yaxis, [x for x in TICKS if low <= x <= high])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    save_figure(figure, path)
