"""Tables and the picture of the benchmark of speed."""

from pathlib import Path
from typing import Any

from cases import Case, SystemResult
from matplotlib.ticker import LogLocator, NullLocator
from reporting import (
    label_ticks,
    make_figure,
    markdown_table,
    save_figure,
    show,
)
from systems import ENCODER, WHOLE


def long_table(results: list[SystemResult]) -> str:
    """Write each case as a row, and name what was skipped.

    Arguments
    ---------
    results : list of SystemResult
        Of all systems.

    Returns
    -------
    str
        Markdown.
    """
    head = [
        *("system", "stage", "audio (s)", "batch", "wall (s)"),
        *("x real time", "peak (MiB)", "above start (MiB)"),
        *("GMAC a second of audio", "share of rate", "layers alone"),
    ]
    rows = [
        [
            *(case.system, case.stage),
            *(f"{case.seconds:g}", str(case.batch)),
            show(case.wall, ".3f"),
            show(case.times_real_time, ".2f"),
            show(case.memory.peak, ".0f"),
            show(case.memory.above, ".0f"),
            show(case.gmac_per_second, ".2f"),
            show(case.share, ".0%"),
            show(case.layer_share, ".0%"),
        ]
        for result in results
        for case in result.cases
        if case.skipped is None
    ]
    return "\n".join([markdown_table(head, rows), *_skipped(results)])


def _skipped(results: list[SystemResult]) -> list[str]:
    lines = []
    for result in results:
        if result.skipped:
            lines.append(f"\nSkipped: {result.name}: {result.skipped}")
        for case in result.cases:
            if case.skipped:
                name = f"{case.system}, {case.stage}"
                size = f"{case.seconds:g} s x {case.batch}"
                lines.append(f"\nSkipped: {name}, {size}: {case.skipped}")
    return lines


def wide_table(results: list[SystemResult]) -> str:
    """Write the systems one under the other, a column for each size.

    Arguments
    ---------
    results : list of SystemResult
        Of all systems.

    Returns
    -------
    str
        Markdown; each cell is how many times real time.
    """
    cases = [case for result in results for case in result.cases]
    sizes = sorted({(case.seconds, case.batch) for case in cases})
    names = dict.fromkeys((case.stage, case.system) for case in cases)
    found = {
        (case.stage, case.system, case.seconds, case.batch): case
        for case in cases
    }
    order = list(dict.fromkeys(case.stage for case in cases))
    rows = []
    for stage, system in sorted(names, key=lambda name: order.index(name[0])):
        cells = [found.get((stage, system, *size)) for size in sizes]
        speeds = [cell and cell.times_real_time for cell in cells]
        rows.append([stage, system, *(show(x, ".2f") for x in speeds)])
    head = [f"{seconds:g} s x {batch}" for seconds, batch in sizes]
    return markdown_table(["x real time", "system", *head], rows)


def best_batches(results: list[SystemResult]) -> list[Case]:
    """Find the fastest batch of each system, stage and length.

    Arguments
    ---------
    results : list of SystemResult
        Of all systems.

    Returns
    -------
    list of Case
        One for each.
    """
    best: dict[tuple, Case] = {}
    for result in results:
        for case in result.cases:
            key = case.system, case.stage, case.seconds
            if case.times_real_time is not None and (
                key not in best
                or case.times_real_time > best[key].times_real_time
            ):
                best[key] = case
    return list(best.values())


def agreement_table(agreement: list[dict[str, Any]]) -> str:
    """Write how far the options' tokens equal those of float32.

    Arguments
    ---------
    agreement : list of dict
        See `agreement.py`.

    Returns
    -------
    str
        Markdown.
    """
    head = ["system", "speech (s)", "tokens", "equal tokens", "equal bits"]
    rows = [
        [
            row["system"],
            f"{row['seconds']:.0f}",
            str(row["tokens"]),
            show(row["equal_tokens"], ".2%"),
            show(row["equal_bits"], ".3%"),
        ]
        for row in agreement
        if not row["skipped"]
    ]
    skipped = [
        f"\nSkipped: {row['system']}: {row['skipped']}"
        for row in agreement
        if row["skipped"]
    ]
    return "\n".join([markdown_table(head, rows), *skipped])


# Of the panels' lines: this codec's models in strong colours.
COLOURS = {
    "focalcodec-full": "tab:blue",
    "focalcodec-mini": "tab:cyan",
    "wavlm-large-6": "tab:red",
    "mimi": "tab:orange",
    "encodec": "tab:green",
    "dac": "tab:brown",
}
STYLES = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]


def draw_speed(results: list[SystemResult], path: Path, title: str) -> None:
    """Draw how many times real time each system reaches over the length.

    Arguments
    ---------
    results : list of SystemResult
        Of all systems.
    path : Path
        The picture.
    title : str
        Where and with what it was measured.
    """
    cases = [
        case
        for result in results
        for case in result.cases
        if case.times_real_time is not None
    ]
    stages = [
        stage
        for stage in (WHOLE, ENCODER)
        if any(case.stage == stage for case in cases)
    ] or sorted({case.stage for case in cases})
    batches = sorted({case.batch for case in cases})
    lengths = sorted({case.seconds for case in cases})
    if not cases:
        return
    figure, grid = make_figure(len(batches), len(stages), (5.2, 3.8))
    figure.suptitle(title, fontsize="small")
    legend: dict[str, Any] = {}
    for row, batch in zip(grid, batches, strict=True):
        for axes, stage in zip(row, stages, strict=True):
            shown = [
                case
                for case in cases
                if (case.batch, case.stage) == (batch, stage)
            ]
            axes.set_title(f"{stage}, batch {batch}", loc="left")
            axes.set(xscale="log", yscale="log")
            axes.set(xlabel="audio (s)", ylabel="times real time")
            _draw_lines(axes, shown)
            label_ticks(axes.xaxis, lengths)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3, axis="y")
            lines, labels = axes.get_legend_handles_labels()
            legend |= dict(zip(labels, lines, strict=True))
    figure.legend(
        legend.values(),
        legend.keys(),
        loc="outside right center",
        fontsize="small",
    )
    save_figure(figure, path)


def _draw_lines(axes: Any, cases: list[Case]) -> None:
    used: dict[str, int] = {}
    for system in dict.fromkeys(case.system for case in cases):
        line = [case for case in cases if case.system == system]
        base = system.split()[0]
        variant = used[base] = used.get(base, -1) + 1
        axes.plot(
            [case.seconds for case in line],
            [case.times_real_time for case in line],
            label=system,
            color=COLOURS.get(base),
            linestyle=STYLES[variant % len(STYLES)],
            marker="o",
            markersize=4,
        )
        limits = [
            (case.seconds, case.times_real_time / case.share)
            for case in line
            if case.share
        ]
        if limits and base == "focalcodec-full" and variant == 0:
            axes.plot(
                *zip(*limits, strict=True),
                label=f"{system} at the matrix rate",
                color="0.6",
                linestyle=":",
            )
