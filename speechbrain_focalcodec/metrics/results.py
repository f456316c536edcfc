"""What an evaluation has measured: parts on disk, and tables of them."""

import csv
import hashlib
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.metrics.base import Row
from speechbrain_focalcodec.metrics.plan import PLAN_NAME, Failure, Plan
from speechbrain_focalcodec.utils.files import atomic_path, atomic_write_text

__all__ = [
    "Part",
    "Parts",
    "audio_path",
    "clear",
    "plain",
    "prepare_folder",
    "write_failures",
    "write_utterances",
]

WORK_NAME = "work"
AUDIO_NAME = "audio"
PLOTS_NAME = "plots"
UTTERANCES_NAME = "utterances.csv"
FAILURES_NAME = "failures.csv"
SUMMARY_NAME = "summary.json"
REPORT_NAME = "summary.md"
FOLDERS = (WORK_NAME, AUDIO_NAME, PLOTS_NAME)
FILES = (UTTERANCES_NAME, FAILURES_NAME, SUMMARY_NAME, REPORT_NAME)


class Part(BaseModel):
    """What one system made of one batch, and how metrics judge it.

    `outputs` are the facts of each output (bits, seconds) by utterance,
    `rows` what a metric says of them, by metric and utterance, and `counts`
    how often each token came, by token.

    Example
    -------
    >>> part = Part(system="a", outputs={"x": {"bits": 9}})
    >>> part.rows["stoi"] = {"x": {"stoi": 0.5}}
    >>> part.flat(["stoi"])
    {'x': {'bits': 9, 'stoi': 0.5}}
    """

    model_config = ConfigDict(extra="forbid")

    system: str
    outputs: dict[str, Row] = {}
    rows: dict[str, dict[str, Row]] = {}
    counts: dict[int, int] = {}
    failures: list[Failure] = []

    def flat(self, metrics: Sequence[str]) -> dict[str, Row]:
        """The fields of each utterance, in the order of some metrics.

        Arguments
        ---------
        metrics : sequence of str
            Their names.

        Returns
        -------
        dict
            Fields by utterance.

        Raises
        ------
        ValueError
            If two metrics give one field different values.
        """
        flat = {id: dict(row) for id, row in self.outputs.items()}
        for metric in metrics:
            for id, row in self.rows.get(metric, {}).items():
                for name, value in row.items():
                    if flat[id].setdefault(name, value) != value:
                        raise ValueError(
                            f"the metric {metric} gives the field {name!r}, "
                            "which another gives too; rename it"
                        )
        return flat


class Parts:
    """The parts of an evaluation, each a file that appears whole.

    Arguments
    ---------
    out : Path
        The evaluation's folder.

    Example
    -------
    >>> parts = Parts(getfixture("tmp_path"))
    >>> parts.write(0, Part(system="codec2:1300"))
    >>> parts.read(0, "codec2:1300").system, parts.read(1, "codec2:1300")
    ('codec2:1300', None)
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / WORK_NAME

    def _path(self, batch: int, system: str) -> Path:
        return self.folder / safe_name(system) / f"{batch:06d}.json"

    def read(self, batch: int, system: str) -> Part | None:
        """A part; None where it is not there."""
        path = self._path(batch, system)
        if not path.is_file():
            return None
        try:
            return Part.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataError(
                f"{path}: is damaged; remove it, and it is measured again"
            ) from error

    def write(self, batch: int, part: Part) -> None:
        """Write a part, whole or not at all."""
        atomic_write_text(
            self._path(batch, part.system), part.model_dump_json() + "\n"
        )

    def of(self, system: str, batches: int) -> list[Part]:
        """All parts of a system."""
        found = (self.read(batch, system) for batch in range(batches))
        return [part for part in found if part is not None]


def safe_name(name: str) -> str:
    """A name as a file's, told apart from others by a few digits.

    Arguments
    ---------
    name : str
        Any text.

    Returns
    -------
    str
        Letters, digits and ``._-`` of it, and a hash.

    Example
    -------
    >>> safe_name("opus:6")
    'opus_6-997bc5'
    """
    digits = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-60:]}-{digits}"


def audio_path(out: Path, system: str, place: int, utterance: str) -> Path:
    """Where the audio of an utterance is saved.

    Arguments
    ---------
    out : Path
        The evaluation's folder.
    system : str
        Whose output it is.
    place : int
        The utterance's place in the data.
    utterance : str
        Its id.

    Returns
    -------
    Path
        A WAV file.

    Example
    -------
    >>> audio_path(Path("out"), "codec2:1300", 0, "84/1").as_posix()
    'out/audio/codec2_1300/0000-84_1.wav'
    """
    folder, stem = (
        re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-60:].lstrip(".")
        for name in (system, utterance)
    )
    return out / AUDIO_NAME / folder / f"{place:04d}-{stem}.wav"


def plain(row: Mapping[str, Any]) -> Row:
    """A row as JSON can hold it; figures that are not finite become None.

    Arguments
    ---------
    row : mapping
        Fields.

    Returns
    -------
    dict
        The same, of Python's own types.

    Example
    -------
    >>> import numpy as np
    >>> plain({"stoi": np.float32(0.5), "pesq": float("nan")})
    {'stoi': 0.5, 'pesq': None}
    """

    def value_of(value: Any) -> float | int | str | None:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, Integral):
            return int(value)
        number = float(value) if isinstance(value, Real) else value.item()
        return number if math.isfinite(number) else None

    return {name: value_of(value) for name, value in row.items()}


def prepare_folder(out: Path, overwrite: bool) -> None:
    """See that a folder is new, or an evaluation's.

    Arguments
    ---------
    out : Path
        The folder.
    overwrite : bool
        Whether to remove the evaluation that is there.

    Raises
    ------
    DataError
        If it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; give a folder for the results")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / PLAN_NAME).is_file() and any(
        entry.name not in (*FOLDERS, *FILES) for entry in out.iterdir()
    ):
        raise DataError(
            f"{out}: is not empty and holds no evaluation; give another --out"
        )
    if overwrite:
        clear(out)


def clear(out: Path) -> None:
    """Remove an evaluation, and nothing else, from a folder.

    Arguments
    ---------
    out : Path
        The folder.
    """
    # The plan goes last: until then the rest is known to be an evaluation's.
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for name in reversed(FOLDERS):
        shutil.rmtree(out / name, ignore_errors=True)


def write_failures(out: Path, failures: Iterable[Failure]) -> Path:
    """Write ``failures.csv``, sorted.

    Arguments
    ---------
    out : Path
        The evaluation's folder.
    failures : iterable of Failure
        The failures; each is written once.

    Returns
    -------
    Path
        The file.
    """
    rows = [failure._asdict() for failure in sorted(set(failures))]
    _write_csv(out / FAILURES_NAME, list(Failure._fields), rows)
    return out / FAILURES_NAME


def write_utterances(
    out: Path,
    plan: Plan,
    rows: Mapping[str, Mapping[str, Row]],
    fields: Sequence[str],
) -> None:
    """Write ``utterances.csv``: a row an utterance and system.

    Arguments
    ---------
    out : Path
        The evaluation's folder.
    plan : Plan
        Its plan.
    rows : mapping
        Fields by id, by system.
    fields : sequence of str
        Those of the metrics, in order.
    """
    known = ["id", "path", "duration", "speaker", "text"]
    if plan.options.task == "voice conversion":
        known.append("target")
    table = [
        {
            **{name: getattr(utterance, name) for name in known},
            "system": system,
            **of_system[utterance.id],
        }
        for utterance in plan.utterances
        for system, of_system in rows.items()
        if utterance.id in of_system
    ]
    columns = [*known, "system", "bits", "seconds", *fields]
    _write_csv(out / UTTERANCES_NAME, columns, table)


def _write_csv(
    path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
