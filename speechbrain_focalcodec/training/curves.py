"""Training curves, read from logs and drawn as one figure."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.training.run_log import (
    KEYS,
    METRICS_FILE,
    read_metrics,
)
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["Curves", "draw_curves", "plot_curves", "read_curves", "read_runs"]

TRAIN_LOG = "train_log.txt"
# Maximum number of points of a curve.
POINTS = 300
# Ratio of values above which the axis is logarithmic.
LOG_RANGE = 4.0
# Size in inches.
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 2.8


@dataclass
class Curves:
    """Curves of one run: steps and values by term and split."""

    name: str
    terms: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = field(
        default_factory=dict
    )


def read_curves(run: str | Path) -> Curves:
    """Read the curves of a run's output folder, in the order of the log.

    From `metrics.jsonl`, or else from SpeechBrain's `train_log.txt`.
    DataError if there is neither, or nothing was logged.
    """
    run = Path(run)
    if not run.is_dir():
        raise DataError(f"{run}: no such folder; give a run's output folder")
    if (run / METRICS_FILE).is_file():
        rows = _metrics_rows(run)
    elif (run / TRAIN_LOG).is_file():
        rows = _text_rows(run / TRAIN_LOG)
    else:
        raise DataError(
            f"{run}: has neither {METRICS_FILE} nor {TRAIN_LOG}; give the "
            "output folder of a training"
        )
    points: dict[str, dict[str, dict[int, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for split, step, values in rows:
        for term, value in values.items():
            points[term][split][step] = value
    curves = Curves(run.resolve().name)
    for term, splits in points.items():
        # Epoch means are drawn only if there are no finer points.
        epochs = splits.pop("train_epoch", None)
        if epochs is not None and "train" not in splits:
            splits["train"] = epochs
        curves.terms[term] = {
            split: (
                np.array(sorted(found), dtype=float),
                np.array([found[step] for step in sorted(found)], dtype=float),
            )
            for split, found in splits.items()
        }
    if not curves.terms:
        raise DataError(f"{run}: nothing was logged yet")
    return curves


def read_runs(runs: Sequence[str | Path]) -> list[Curves]:
    """Read several runs, named by the shortest distinct ends of their paths."""
    curves = [read_curves(run) for run in runs]
    paths = [Path(run).resolve().parts for run in runs]
    depth = 1
    while depth < max(map(len, paths)) and len(
        {parts[-depth:] for parts in paths}
    ) < len(set(paths)):
        depth += 1
    for curve, parts in zip(curves, paths, strict=True):
        curve.name = "/".join(parts[-depth:])
    return curves


# Split, step, and values by term.
Row = tuple[str, int, dict[str, float]]


def _metrics_rows(run: Path) -> list[Row]:
    return [
        (
            line["split"],
            line["step"],
            {k: float(v) for k, v in line.items() if k not in KEYS},
        )
        for line in read_metrics(run)
        if line["split"] not in ("test", "evaluation")
    ]


def _text_rows(path: Path) -> list[Row]:
    """Rows of SpeechBrain's text log; repeated epochs replace earlier ones."""
    epochs: dict[int, list[Row]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            numbers = {
                key: float(value)
                for part in line.split(" - ")
                for key, value in [
                    item.rsplit(": ", 1) for item in part.split(", ")
                ]
            }
            epoch, step = int(numbers.pop("epoch")), int(numbers.pop("steps"))
        except (ValueError, KeyError):
            # A test line, or a partly written one.
            continue
        splits: dict[str, dict[str, float]] = defaultdict(dict)
        for key, value in numbers.items():
            split, _, term = key.rpartition(" ")
            splits[split or "train"][term] = value
        for later in [other for other in epochs if other >= epoch]:
            del epochs[later]
        epochs[epoch] = [(split, step, x) for split, x in splits.items()]
    return [row for rows in epochs.values() for row in rows]


# Panels after those of the losses: title, and whether the axis is always linear
# (shares, scores and schedules).
_PANELS = {
    "discriminator": ("discriminator loss", False),
    "score_real": ("discriminator score, real", True),
    "score_fake": ("discriminator score, fake", True),
    "discriminator_accuracy": ("discriminator accuracy", True),
    "code_usage": ("codes used (share)", True),
    "code_entropy": ("entropy of codes (1: uniform)", True),
    "grad_norm": ("gradient norm", False),
    "grad_norm_generator": ("gradient norm, generator", False),
    "grad_norm_discriminator": ("gradient norm, discriminator", False),
    "lr": ("learning rate", True),
    "seconds_per_step": ("seconds per step", False),
    "audio_per_second": ("seconds of audio per second", True),
}
# Distinct with any colour vision (Okabe and Ito).
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C6D31",
)


def plot_curves(
    path: str | Path, runs: Sequence[Curves], terms: Sequence[str] = ()
) -> None:
    """Draw a panel for each term, with all runs in each, and save the figure.

    Each run has a colour; training is thin, validation thick. Axes are
    logarithmic where all values are positive and span a wide range.
    ValueError if there is no run, or no run has a term.
    """
    path = Path(path)
    figure = draw_curves(runs, terms)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=110)


def draw_curves(runs: Sequence[Curves], terms: Sequence[str] = ()) -> Figure:
    """Draw the figure of :func:`plot_curves` without saving it."""
    if not runs:
        raise ValueError("No run to plot")
    found = _ordered([term for run in runs for term in run.terms])
    unknown = [term for term in terms if term not in found]
    if unknown:
        raise ValueError(
            f"terms: no run has {', '.join(unknown)}; there are "
            f"{', '.join(found)}"
        )
    terms = list(dict.fromkeys(terms)) or found
    columns = 2 if len(terms) == 4 else min(len(terms), 3)
    rows = math.ceil(len(terms) / columns)
    width = PANEL_WIDTH * columns
    labels = ["training", "validation", *(_short(run.name) for run in runs)]
    # A letter is about 0.085 inches wide, a line and its margins 0.7.
    across = max(1, int(width / (0.085 * max(map(len, labels)) + 0.7)))
    down = math.ceil(len(labels) / across)
    figure = Figure(
        figsize=(width, 0.4 + 0.24 * down + PANEL_HEIGHT * rows),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    last = max(
        steps[-1]
        for run in runs
        for term, splits in run.terms.items()
        if term in terms
        for steps, _ in splits.values()
    )
    for axes, term in zip(panels, terms, strict=False):
        _draw(axes, term, runs)
        axes.set_xlim(0, 1.02 * max(last, 1.0))
    for axes in panels[len(terms) :]:
        axes.remove()
    for axes in panels[len(terms) - columns : len(terms)]:
        axes.set_xlabel("steps")
    _legend(figure, labels, math.ceil(len(labels) / down))
    return figure


def _ordered(terms: Sequence[str]) -> list[str]:
    """Distinct terms: the loss, other losses, then the other panels."""
    panels = list(_PANELS)

    def place(term: str) -> int:
        if term in _PANELS:
            return 1 + panels.index(term)
        return -1 if term == "loss" else 0

    return sorted(dict.fromkeys(terms), key=place)


def _draw(axes: Axes, term: str, runs: Sequence[Curves]) -> None:
    """Draw the panel of a term."""
    title, linear = _PANELS.get(term, (term.replace("_", " "), False))
    axes.set_title(title, loc="left", fontsize=11)
    shown = [np.empty(0)]
    alone = not any("valid" in run.terms.get(term, {}) for run in runs)
    for i, run in enumerate(runs):
        for split, (steps, values) in sorted(run.terms.get(term, {}).items()):
            steps, values = _thinned(steps, values)
            thick = split == "valid"
            axes.plot(
                steps,
                values,
                color=_COLOURS[i % len(_COLOURS)],
                linewidth=1.9 if thick else 1.2,
                alpha=1.0 if thick else 0.9 if alone else 0.5,
                marker="o" if len(steps) < 3 else None,
                markersize=4,
                zorder=3 if thick else 2,
            )
            shown.append(values[np.isfinite(values)])
    values = np.concatenate(shown)
    if not linear and len(values) and values.min() > 0:
        if values.max() / values.min() > LOG_RANGE:
            _logarithmic(axes, values.max() / values.min())
    if term == "lr":
        # Otherwise a constant rate shows its rounding.
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _thinned(
    steps: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points where there are more than `POINTS`."""
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= POINTS:
        return steps, values
    size = math.ceil(len(steps) / POINTS)
    starts = np.arange(0, len(steps), size)
    valid = np.isfinite(values)
    counts = np.add.reduceat(valid.astype(float), starts)
    sums = np.add.reduceat(np.where(valid, values, 0.0), starts)
    with np.errstate(invalid="ignore"):
        means = np.where(counts > 0, sums / counts, np.nan)
    lengths = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / lengths, means


def _logarithmic(axes: Axes, span: float) -> None:
    """Use a logarithmic axis with about five ticks."""
    digits: tuple[float, ...] = (1,)
    if span < 7:
        digits = (1, 1.5, 2, 3, 4, 5, 7)
    elif span < 30:
        digits = (1, 2, 3, 5)
    elif span < 1000:
        digits = (1, 3)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=digits))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, labels: Sequence[str], columns: int) -> None:
    """Draw the legend above the panels."""
    figure.legend(
        [
            Line2D([], [], color="#555555", linewidth=1.2, alpha=0.6),
            Line2D([], [], color="#555555", linewidth=1.9),
            *(
                Line2D([], [], color=_COLOURS[i % len(_COLOURS)], linewidth=4)
                for i in range(len(labels) - 2)
            ),
        ],
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=11,
    )


def _short(name: str, most: int = 40) -> str:
    """Shorten a name in the middle."""
    if len(name) <= most:
        return name
    half = most // 2 - 1
    return f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"
