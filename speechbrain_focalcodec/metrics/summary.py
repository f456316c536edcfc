"""The figures of an evaluation: means over utterances, with intervals."""

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

# What may decide a figure.
LIBRARIES = (
    *("speechbrain_focalcodec", "torch", "torchaudio", "speechbrain", "numpy"),
    *("transformers", "openai-whisper", "jiwer", "pystoi", "pesq", "swift-f0"),
    *("librosa", "speechmos", "distillmos", "resemblyzer", "onnxruntime"),
)


@dataclass(frozen=True)
class Figure:
    """One cell of the summary.

    Arguments
    ---------
    value, low, high : float, optional
        The value and its 95 % interval; None where no utterance has any.
    count : int
        Utterances that it is of.

    Example
    -------
    >>> Figure(None, None, None, 0).count
    0
    """

    value: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class SystemSummary:
    """What came of one system.

    Arguments
    ---------
    name, fingerprint : str
        The system.
    utterances, failures : int
        How many have a row, and how many failed in whole or in part.
    bitrate : float, optional
        In bit/s; None of what codes nothing.
    real_time_factor : float, optional
        Seconds of work a second of speech.
    figures : dict
        A `Figure` for each column's key.
    codes : dict
        Statistics of the codes, where the system has one codebook.
    differences : dict
        A `Figure` for each column's key: this system less the summary's
        `base`, over the utterances that both have. Empty for the base.

    Example
    -------
    >>> SystemSummary("a", "", 1, 0, 650.0, 0.1).figures
    {}
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
        """Whether it takes less than samples of 16 bits, as PCM, do."""
        most = 0.999 * 16 * SAMPLE_RATE  # sums of seconds are rounded
        return self.bitrate is not None and self.bitrate < most


@dataclass(frozen=True)
class Summary:
    """What an evaluation came to.

    Arguments
    ---------
    task : str
        ``resynthesis`` or ``voice conversion``.
    data : str
        What was measured on.
    utterances : int
        How many that could be read.
    unreadable : int
        How many that could not.
    duration : float
        Of the former, in seconds.
    seed : int
        Of draws.
    columns : tuple of Column
        The metrics' columns.
    metrics : dict
        Fingerprints by name.
    systems : list of SystemSummary
        The systems, in the order of the table.
    versions : dict
        Of the libraries.
    base : str
        The system that others are compared with: the first that compresses.
    min_duration : float
        Utterances of fewer seconds were left out.

    Example
    -------
    >>> Summary("resynthesis", "in", 0, 0, 0.0, 0, (), {}, [], {}).systems
    []
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
        """The summary of a system."""
        return next(it for it in self.systems if it.name == name)

    def to_dict(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        return asdict(self)


def figure(column: Column, rows: Sequence[Row], seed: int = 0) -> Figure:
    """A column's value over utterances, with its interval.

    Arguments
    ---------
    column : Column
        The column.
    rows : sequence of dict
        The utterances' fields, always in the same order.
    seed : int
        Seed of the draws.

    Returns
    -------
    Figure
        Over those that have all fields that it takes.

    Example
    -------
    >>> column = Column("wer", "WER %", "lower", "edits", "words", 100)
    >>> rows = [{"edits": 1, "words": 4}, {"edits": None, "words": 9}]
    >>> figure(column, rows)
    Figure(value=25.0, low=25.0, high=25.0, count=1)
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
    """How much a column differs between two systems, with its interval.

    Arguments
    ---------
    column : Column
        The column.
    rows, against : mapping
        Fields by utterance, of the one and the other.
    seed : int
        Seed of the draws.

    Returns
    -------
    Figure
        The one less the other, over the utterances that both have.

    Example
    -------
    >>> column = Column("stoi", "STOI", "higher", "stoi")
    >>> difference(column, {"a": {"stoi": 0.5}}, {"a": {"stoi": 0.75}})
    Figure(value=-0.25, low=-0.25, high=-0.25, count=1)
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
    """A column's value of each utterance that has one.

    Arguments
    ---------
    column : Column
        The column.
    rows : sequence of dict
        The utterances' fields.

    Returns
    -------
    np.ndarray
        The values.

    Example
    -------
    >>> column = Column("wer", "WER %", "lower", "edits", "words", 100)
    >>> utterance_values(column, [{"edits": 1, "words": 4}, {}])
    array([25.])
    """
    above, below = map(np.asarray, _terms(column, rows))
    used = below != 0
    return column.scale * above[used] / below[used]


def versions() -> dict[str, str]:
    """Versions of the libraries that may decide a figure.

    Returns
    -------
    dict
        Of those that are installed.

    Example
    -------
    >>> "torch" in versions()
    True
    """
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
    # A Row's fields may be texts; those that columns name are numbers.
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
