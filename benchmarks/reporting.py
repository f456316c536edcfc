"""Options, tables, JSON files and pictures of the benchmarks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from speechbrain_focalcodec.utils.files import atomic_path, atomic_write_text


def parse_names(text: str) -> list[str]:
    """Read an option that lists names.

    Arguments
    ---------
    text : str
        Such as ``"bf16,int8"``.

    Returns
    -------
    list of str
        The names, none twice.
    """
    names = [name.strip() for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def parse_numbers(text: str, minimum: float = 0.0) -> list[float]:
    """Read an option that lists numbers.

    Arguments
    ---------
    text : str
        Such as ``"2,10,30"``.
    minimum : float
        The smallest number to accept.

    Returns
    -------
    list of float
        The numbers in rising order, none twice.

    Raises
    ------
    typer.BadParameter
        If there is no number, or something else.
    """
    try:
        numbers = sorted({float(name) for name in parse_names(text)})
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}") from error
    if not numbers or not minimum <= numbers[0] <= numbers[-1] < float("inf"):
        raise typer.BadParameter(
            f"{text!r}: give numbers of at least {minimum:g}, with commas "
            "between them"
        )
    return numbers


def show(value: Any, form: str = ".3g") -> str:
    """Write a value into a table.

    Arguments
    ---------
    value : Any
        Numbers are formatted; None is a dash.
    form : str
        Python's format of a float.

    Returns
    -------
    str
        The text.

    Example
    -------
    >>> show(1 / 3, ".0%"), show(None), show("DAC")
    ('33%', '–', 'DAC')
    """
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, float) else str(value)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table whose columns also line up as text.

    Arguments
    ---------
    head : sequence of str
        Titles of the columns.
    rows : iterable of sequences of str
        The cells.

    Returns
    -------
    str
        The table.
    """
    table = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        f"| {' | '.join(map(str.ljust, cells, widths))} |" for cells in table
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write results, whole or not at all.

    Arguments
    ---------
    path : Path
        The file.
    result : dict
        What JSON can hold.
    """
    atomic_write_text(path, json.dumps(result, indent=1) + "\n")


def make_figure(
    num_rows: int, num_columns: int, size: tuple[float, float]
) -> tuple[Figure, Any]:
    """Begin a picture, without matplotlib's global state.

    Arguments
    ---------
    num_rows, num_columns : int
        Panels.
    size : tuple of float
        Width and height of a panel, in inches.

    Returns
    -------
    figure : Figure
        The picture.
    axes : numpy.ndarray
        The panels, of shape [num_rows, num_columns].
    """
    width, height = size
    figure = Figure(
        figsize=(width * num_columns, height * num_rows), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    return figure, grid


def label_ticks(axis: Any, values: Sequence[float]) -> None:
    """Name exactly some values on a logarithmic axis.

    Arguments
    ---------
    axis : matplotlib.axis.Axis
        The axis.
    values : sequence of float
        The values.
    """
    axis.set_ticks(list(values), [f"{value:g}" for value in values])
    axis.set_ticks([], minor=True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all.

    Arguments
    ---------
    figure : Figure
        The picture.
    path : Path
        The file: png, pdf or svg by its suffix.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=120)
