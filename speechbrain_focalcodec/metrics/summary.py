"""Figures of an evaluation: means over utterances, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import numpy as np

from speechbrain_focalcodec.metrics.base import SAMPLE_RATE, Column, Row
from speechbrain_focalcodec.metrics.bootstrap import (
    Estimate,
    bootstrap_difference,
    bootstrap_ratio,
)

__all__ = [
    "Figure",
    "Summary",
    "SystemSummary",
    "difference",
    "figure",
    "utterance_values",
    "versions",
]

# Libraries that may affect figures.
LIBRARIES = (
    *("speechbrain_focalcodec", "torch", "torchaudio", "speechbrain", "numpy"),
    *("transformers", "openai-whisper", "jiwer", "pystoi", "pesq", "swift-f0"),
    *("librosa", "speechmos", "distillmos", "resemblyzer", "onnxruntime"),
)


@dataclass(frozen=True)
class Figure:
    """One cell of the summary: a value and its 95 % interval.

    They are None if no utterance has a value; `count` is how many have one.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class SystemSummary:
    """Results of one system.

    Arguments
    ---------
    name, fingerprint : str
        Name and identity of the system.
    utterances, failures : int
        Number of rows, and of utterances that failed fully or partly.
    bitrate : float, optional
        Bits per second; None if nothing is coded.
    real_time_factor : float, optional
        Seconds of processing per second of speech.
    figures : dict
        A `Figure` for each column's key.
    codes : dict
        Codebook statistics of a system with one codebook.
    differences : dict
        A `Figure` for each column's key: this system minus the summary's
        `base`, over their common utterances. Empty for the base.
    """

    name: str
    fingerprint: str
    utterances: int
    failures: int
    bitrate: float | None
    real_time_factor: float | None
    figures: dict[str, Figure] = field(default_factory=dict)
    codes: dict[str, float] = field(default_factory=dict)
    differences: dict[str, Figure] = field(default_factory=dict)

    @property
    def compresses(self) -> bool:
        """True if the bitrate is below that of 16-bit PCM."""
        most = 0.999 * 16 * SAMPLE_RATE  # sums of seconds are rounded
        return self.bitrate is not None and self.bitrate < most


@dataclass(frozen=True)
class Summary:
    """Results of an evaluation.

    Arguments
    ---------
    task : str
        ``resynthesis`` or ``voice conversion``.
    data : str
        Source of the utterances.
    utterances : int
        Number of readable utterances.
    unreadable : int
        Number of unreadable utterances.
    duration : float
        Duration of the readable ones in seconds.
    seed : int
        Seed of the draws.
    columns : tuple of Column
        Columns of the metrics.
    metrics : dict
        Fingerprints of the metrics by name.
    systems : list of SystemSummary
        Systems in the order of the table.
    versions : dict
        Versions of libraries.
    base : str
        System that the others are compared with: the first that compresses.
    min_duration : float
        Shorter utterances were left out, in seconds.
    """

    task: str
    data: str
    utterances: int
    unreadable: int
    duration: float
    seed: int
    columns: tuple[Column, ...]
    metrics: dict[str, str]
    systems: list[SystemSummary]
    versions: dict[str, str]
    base: str = ""
    min_duration: float = 0.0

    def __getitem__(self, name: str) -> SystemSummary:
        """The summary of a system by name."""
        return next(it for it in self.systems if it.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Content of ``summary.json``."""
        return asdict(self)


def figure(column: Column, rows: Sequence[Row], seed: int = 0) -> Figure:
    """Value of a column over utterances, with its interval.

    `rows` are the utterances' fields in a fixed order. Utterances without the
    column's fields are left out.
    """
    numerators, denominators = _terms(column, rows)
    if not sum(denominators):
        return Figure(None, None, None, len(denominators))
    estimate = bootstrap_ratio(numerators, denominators, seed=seed)
    return _scaled(estimate, column, len(numerators))


def difference(
    column: Column,
    rows: Mapping[str, Row],
    against: Mapping[str, Row],
    seed: int = 0,
) -> Figure:
    """Difference of a column between two systems, with its interval.

    `rows` and `against` are fields by utterance. The figure is over the
    utterances with a value in both.
    """
    both = [
        id
        for id in sorted(rows.keys() & against.keys())
        if _has(column, rows[id]) and _has(column, against[id])
    ]
    first = _terms(column, [rows[id] for id in both])
    second = _terms(column, [against[id] for id in both])
    if not sum(first[1]) or not sum(second[1]):
        return Figure(None, None, None, len(both))
    estimate = bootstrap_difference(first, second, seed=seed)
    return _scaled(estimate, column, len(both))


def utterance_values(column: Column, rows: Sequence[Row]) -> np.ndarray:
    """Values of a column for the utterances that have one, [N]."""
    above, below = map(np.asarray, _terms(column, rows))
    used = below != 0
    return column.scale * above[used] / below[used]


def versions() -> dict[str, str]:
    """Versions of installed libraries that may affect figures."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _has(column: Column, row: Row) -> bool:
    fields = (column.numerator, column.denominator)
    return all(name is None or row.get(name) is not None for name in fields)


def _terms(
    column: Column, rows: Sequence[Row]
) -> tuple[list[float], list[float]]:
    used = [row for row in rows if _has(column, row)]
    # Fields named by columns are numbers.
    above: list[Any] = [row[column.numerator] for row in used]
    below: list[Any] = [
        1 if column.denominator is None else row[column.denominator]
        for row in used
    ]
    return above, below


def _scaled(estimate: Estimate, column: Column, count: int) -> Figure:
    value, low, high = (
        column.scale * number
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return Figure(value, low, high, count)
