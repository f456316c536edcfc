"""Writes the summary of an evaluation as Markdown."""

from collections.abc import Callable, Sequence

from speechbrain_focalcodec.metrics.base import Column
from speechbrain_focalcodec.metrics.summary import (
    Figure,
    Summary,
    SystemSummary,
)

__all__ = ["to_markdown"]

# Headings of the codebook statistics, which are shares.
CODES = {
    "code_usage": "codes used %",
    "code_entropy": "entropy %",
    "code_entropy_used": "entropy of used codes %",
}


def to_markdown(summary: Summary) -> str:
    """Format a summary: facts, a table of systems, and a table of differences.

    The best value of a column is bold. Differences are from `summary.base`.
    """
    lines = [f"# {summary.task.capitalize()}", "", *_facts(summary), ""]
    lines += _table(summary)
    if len(summary.systems) > 1 and _columns(summary):
        lines += ["", *_differences(summary)]
    return "\n".join(lines) + "\n"


def _facts(summary: Summary) -> list[str]:
    """Lines on data, failures and intervals."""
    facts = (
        f"{summary.utterances} utterances ({summary.duration / 60:.1f} min) "
        f"of `{summary.data}`"
    )
    if summary.min_duration:
        facts += f", each of {summary.min_duration:g} s or more"
    if summary.unreadable:
        facts += f"; {summary.unreadable} could not be read"
    facts += (
        f"; 95 % intervals by bootstrap over utterances (seed {summary.seed})."
    )
    lines = [facts]
    for system in summary.systems:
        if system.failures:
            lines.append(
                f"With {system.name}, {system.failures} failed in whole or "
                "in part (see failures.csv)."
            )
    if any(_is_partial(summary, it) for it in summary.systems):
        lines.append("n: of how many utterances a figure is, if not of all.")
    return lines


def _is_partial(summary: Summary, system: SystemSummary) -> bool:
    return any(
        0 < figure.count < summary.utterances
        for figure in system.figures.values()
    )


def _table(summary: Summary) -> list[str]:
    systems = summary.systems
    heads = ["system", "kbps"]
    cells = [
        [it.name for it in systems],
        [_number(it.bitrate, 2, 1e-3) for it in systems],
    ]
    for column in _columns(summary):
        heads.append(_heading(column))
        best = _best(column, systems)
        cells.append(
            [
                _cell(
                    it.figures[column.key],
                    column,
                    summary.utterances,
                    it.compresses and _shown(it, column) == best,
                )
                for it in systems
            ]
        )
    for key, label in CODES.items():
        if any(key in it.codes for it in systems):
            heads.append(label)
            cells.append([_number(it.codes.get(key), 1, 100) for it in systems])
    heads.append("real-time factor")
    cells.append([_number(it.real_time_factor, 4) for it in systems])
    return _lines(heads, cells)


def _differences(summary: Summary) -> list[str]:
    base = summary[summary.base]
    others = [it for it in summary.systems if it.differences]
    heads, cells = ["system"], [[it.name for it in others]]
    for column in _columns(summary):
        heads.append(_heading(column))
        cells.append(
            [
                _cell(
                    it.differences[column.key],
                    column,
                    base.figures[column.key].count,
                    sign="+",
                )
                for it in others
            ]
        )
    return [
        f"Differences from {base.name}, on the same utterances (paired "
        "bootstrap):",
        "",
        *_lines(heads, cells),
    ]


def _columns(summary: Summary) -> list[Column]:
    """Columns with at least one figure."""
    return [
        column
        for column in summary.columns
        if any(it.figures[column.key].count for it in summary.systems)
    ]


def _heading(column: Column) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", None: ""}[column.better]
    return column.label + arrow


def _shown(system: SystemSummary, column: Column) -> float | None:
    """A figure as displayed; figures that look equal share the best place."""
    value = system.figures[column.key].value
    return None if value is None else round(value, column.digits)


def _best(column: Column, systems: Sequence[SystemSummary]) -> float | None:
    """Best figure of the systems that compress; None if there is only one."""
    values = [
        value
        for it in systems
        if it.compresses and (value := _shown(it, column)) is not None
    ]
    if column.better is None or len(values) < 2:
        return None
    choose: Callable = max if column.better == "higher" else min
    return choose(values)


def _cell(
    figure: Figure,
    column: Column,
    utterances: int,
    is_best: bool = False,
    sign: str = "",
) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return "–"
    value, low, high = (
        f"{number:{sign}.{column.digits}f}"
        for number in (figure.value, figure.low, figure.high)
    )
    value = f"**{value}**" if is_best else value
    cell = f"{value} [{low}, {high}]"
    if figure.count < utterances:
        cell += f" (n={figure.count})"
    return cell


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"


def _lines(heads: list[str], cells: list[list[str]]) -> list[str]:
    rows = [heads, ["---"] * len(heads), *zip(*cells, strict=True)]
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in rows
    ]
