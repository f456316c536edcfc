"""Plots of an evaluation: box plots of each column, and bitrates."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, NullFormatter

from speechbrain_focalcodec.metrics.base import Column, Row
from speechbrain_focalcodec.metrics.summary import (
    Summary,
    SystemSummary,
    utterance_values,
)
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["plot_all", "plot_bitrates", "plot_boxes"]

BITRATES_NAME = "bitrate.png"
# Okabe and Ito's colours, suitable for colour-blind readers.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#7F7F7F", "#B8A800"),
)
MARKERS = "osD^vP*X"
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.7}
FEW = 4  # maximum number of panels in two columns; else three


def plot_all(
    folder: Path,
    summary: Summary,
    rows: Mapping[str, Mapping[str, Row]],
) -> None:
    """Write a box plot of each column, and all columns against the bitrate.

    The content of the folder is removed. `rows` are the fields of each
    utterance for each system.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for column in summary.columns:
        of_systems = {name: list(of.values()) for name, of in rows.items()}
        plot_boxes(folder / f"{column.key}.png", column, summary, of_systems)
    plot_bitrates(folder / BITRATES_NAME, summary)


def plot_boxes(
    path: Path,
    column: Column,
    summary: Summary,
    rows: Mapping[str, Sequence[Row]],
) -> None:
    """Write a box plot of the utterances' values for each system.

    Boxes show quartiles and median, whiskers the farthest utterance within 1.5
    times the width of the box. The dot is the figure of the table. Nothing is
    written if no utterance has a value.
    """
    systems = summary.systems
    values = [utterance_values(column, rows[it.name]) for it in systems]
    if not any(map(len, values)):
        return
    picture, (axes,) = _begin(1, height=4.2, width=2.5 + 0.9 * len(systems))
    boxes = axes.boxplot(
        values,
        positions=range(len(systems)),
        widths=0.6,
        patch_artist=True,
        medianprops={"color": "black", "linewidth": 1.4},
        flierprops={"marker": ".", "markersize": 4, "alpha": 0.5},
    )
    for place, (box, system) in enumerate(
        zip(boxes["boxes"], systems, strict=True)
    ):
        box.set(facecolor=_colour(place), alpha=0.55, edgecolor="#333333")
        figure = system.figures[column.key]
        if figure.value is not None:
            axes.plot(
                place,
                figure.value,
                "o",
                color="white",
                markeredgecolor="black",
                markersize=6,
                zorder=5,
            )
    axes.set_xticks(
        range(len(systems)),
        [it.name for it in systems],
        rotation=30,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_ylabel(_label(column))
    axes.grid(axis="y", **GRID)
    _save(picture, path)


def plot_bitrates(path: Path, summary: Summary) -> None:
    """Plot every column against the bitrate, one panel each.

    Bars are 95 % intervals. Systems that do not compress are dashed lines.
    Nothing is written without bitrates or columns.
    """
    columns = [
        column
        for column in summary.columns
        if any(
            it.compresses and it.figures[column.key].value is not None
            for it in summary.systems
        )
    ]
    if not columns:
        return
    picture, panels = _begin(len(columns), height=0.8, panel=3.0)
    for axes, column in zip(panels, columns, strict=True):
        for place, system in enumerate(summary.systems):
            _draw_system(axes, place, system, column)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_in_kbps))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _set_ticks(axes, summary.systems)
        axes.set_ylabel(_label(column))
        axes.set_xlabel("bitrate (kbit/s)")
        axes.margins(x=0.15, y=0.12)
        axes.grid(**GRID)
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4, len(labels)),
        frameon=False,
    )
    _save(picture, path)


def _draw_system(
    axes: Axes, place: int, system: SystemSummary, column: Column
) -> None:
    figure = system.figures[column.key]
    value, low, high = figure.value, figure.low, figure.high
    if value is None or low is None or high is None:
        value = low = high = float("nan")  # for the legend
    colour = _colour(place)
    if not (system.bitrate and system.compresses):
        axes.axhline(
            value, color=colour, linestyle="--", label=system.name, zorder=2
        )
        return
    axes.errorbar(
        system.bitrate / 1000,
        value,
        # With few utterances the interval may not contain the value.
        yerr=[[max(value - low, 0)], [max(high - value, 0)]],
        fmt=MARKERS[place % len(MARKERS)],
        color=colour,
        markersize=7,
        capsize=3,
        label=system.name,
        zorder=3,
    )


def _set_ticks(axes: Axes, systems: Sequence[SystemSummary]) -> None:
    """Ticks at 1, 2 and 5 of each decade near the systems' bitrates."""
    rates = [
        it.bitrate / 1000 for it in systems if it.bitrate and it.compresses
    ]
    ticks = [m * 10.0**e for e in range(-3, 4) for m in (1, 2, 5)]
    low, high = min(rates) / 1.6, max(rates) * 1.6
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xlim(low, high)


def _in_kbps(value: float, position: int | None) -> str:
    return f"{value:g}"


def _label(column: Column) -> str:
    better = "" if column.better is None else f", {column.better} is better"
    return column.label + better


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _begin(
    panels: int, height: float, panel: float = 0.0, width: float | None = None
) -> tuple[Picture, list[Axes]]:
    """A figure with `panels` axes, without matplotlib's global state."""
    columns = min(panels, 2 if panels <= FEW else 3)
    lines = -(-panels // columns)
    height += panel * lines
    width = 1.5 + 4.0 * columns if width is None else width
    picture = Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    grid = picture.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in grid[panels:]:
        axes.set_axis_off()
    return picture, list(grid[:panels])


def _save(picture: Picture, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.savefig(temporary, format="png", dpi=130)
