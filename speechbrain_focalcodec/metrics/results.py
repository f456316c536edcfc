"""Reads and writes the results of an evaluation: JSONL files and tables."""

import csv
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.metrics.base import Row
from speechbrain_focalcodec.metrics.plan import (
    Failure,
    OtherEvaluationError,
    Plan,
)
from speechbrain_focalcodec.utils.files import atomic_path, atomic_write_text

__all__ = [
    "Measurement",
    "Measurements",
    "audio_path",
    "clear",
    "plain",
    "prepare_folder",
    "read_settings",
    "write_failures",
    "write_settings",
    "write_utterances",
]

WORK_NAME = "work"
AUDIO_NAME = "audio"
PLOTS_NAME = "plots"
SETTINGS_NAME = f"{WORK_NAME}/settings.json"
UTTERANCES_NAME = "utterances.csv"
FAILURES_NAME = "failures.csv"
SUMMARY_NAME = "summary.json"
REPORT_NAME = "summary.md"
FOLDERS = (WORK_NAME, AUDIO_NAME, PLOTS_NAME)
FILES = (UTTERANCES_NAME, FAILURES_NAME, SUMMARY_NAME, REPORT_NAME)


@dataclass
class Measurement:
    """Results of one utterance with one system: a line of JSON.

    Arguments
    ---------
    id : str
        The utterance.
    output : dict, optional
        Bits and seconds of the system's output; None if it failed.
    rows : dict
        Fields by metric.
    counts : dict
        Number of occurrences of each token.
    failures : list of [str, str]
        The system's name, or empty if the file cannot be read, and the
        reason.
    """

    id: str
    output: Row | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    failures: list[list[str]] = field(default_factory=list)

    def fields(self, metrics: Sequence[str]) -> Row:
        """Fields of the metrics, in order; a ValueError if two differ."""
        found = dict(self.output or {})
        for metric in metrics:
            for name, value in self.rows.get(metric, {}).items():
                if found.setdefault(name, value) != value:
                    raise ValueError(
                        f"the metric {metric} gives the field {name!r}, "
                        "which another gives too; rename it"
                    )
        return found


class Measurements(dict[str, Measurement]):
    """Measurements of one system by utterance, kept in a JSONL file.

    A later line of an utterance replaces an earlier one. An incomplete last
    line, which a kill may leave, is dropped.

    Arguments
    ---------
    out : Path
        The evaluation's folder.
    system : str
        Name of the system.

    Raises
    ------
    DataError
        If the file is damaged.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> Measurements(folder, "opus:6").add([Measurement("a", {"bits": 9})])
    >>> Measurements(folder, "opus:6")["a"].output
    {'bits': 9}
    """

    def __init__(self, out: Path, system: str) -> None:
        super().__init__()
        self.path = out / WORK_NAME / f"{safe_name(system)}.jsonl"
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        try:
            for line in whole.splitlines():
                found = Measurement(**json.loads(line))
                found.counts = {int(k): n for k, n in found.counts.items()}
                self[found.id] = found
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path}: is damaged; remove it, and this system is "
                "measured again"
            ) from error

    def add(self, measurements: Sequence[Measurement]) -> None:
        """Append measurements, and flush them to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(asdict(it)) + "\n" for it in measurements]
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write("".join(lines))
            stream.flush()
            os.fsync(stream.fileno())
        self.update((it.id, it) for it in measurements)


def read_settings(out: Path) -> dict[str, Any] | None:
    """Read the settings of an evaluation's folder; None if there are none.

    Raises
    ------
    OtherEvaluationError
        If the file is damaged.
    """
    path = out / SETTINGS_NAME
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_bytes())
        settings["options"]["batch_duration"]
        return settings
    except (ValueError, TypeError, LookupError) as error:
        raise OtherEvaluationError(
            f"{path}: is damaged; give --overwrite to begin anew"
        ) from error


def write_settings(
    out: Path, settings: dict[str, Any], before: dict[str, Any] | None
) -> None:
    """Write the settings; refuse those of another evaluation.

    More systems and metrics than before are allowed.

    Arguments
    ---------
    out : Path
        The evaluation's folder.
    settings : dict
        ``options`` by name, ``items`` (number and digest), and fingerprints
        of ``systems`` and ``metrics`` by name.
    before : dict, optional
        The settings that are there.

    Raises
    ------
    OtherEvaluationError
        If anything else differs; the message names it.
    """
    if before is not None and (problem := _difference(before, settings)):
        raise OtherEvaluationError(
            f"{out}: holds another evaluation: {problem}. Give another --out, "
            "or --overwrite to begin anew"
        )
    # As text, since the order of systems and metrics counts.
    text = json.dumps(settings)
    if json.dumps(before) != text:
        atomic_write_text(out / SETTINGS_NAME, text + "\n")


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    for name, value in now["options"].items():
        if (old := before["options"].get(name)) != value:
            return f"{name.replace('_', ' ')} was {old}, not {value}"
    if before.get("items") != now["items"]:
        return "its data had other utterances"
    for kind in ("systems", "metrics"):
        one = "model" if kind == "systems" else "metric"
        for name, fingerprint in before.get(kind, {}).items():
            if name not in now[kind]:
                return f"its {one}s include {name}; give it too"
            if now[kind][name] != fingerprint:
                return f"its {one} {name} was another one of that name"
    return ""


def safe_name(name: str) -> str:
    """A file name of a name's letters and digits, and a hash."""
    digits = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-60:]}-{digits}"


def audio_path(out: Path, system: str, place: int, utterance: str) -> Path:
    """Path of the WAV file of a system's output for an utterance.

    `place` is the utterance's number in the data.

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
    """Convert a row to plain Python types; non-finite figures become None.

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
    """Check that a folder is new or an evaluation's; `overwrite` empties it."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; give a folder for the results")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / SETTINGS_NAME).is_file() and any(
        entry.name not in (*FOLDERS, *FILES) for entry in out.iterdir()
    ):
        raise DataError(
            f"{out}: is not empty and holds no evaluation; give another --out"
        )
    if overwrite:
        clear(out)


def clear(out: Path) -> None:
    """Remove an evaluation's files from a folder; other files stay."""
    # The settings go last: they mark the folder as an evaluation's.
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for name in reversed(FOLDERS):
        shutil.rmtree(out / name, ignore_errors=True)


def write_failures(out: Path, failures: Iterable[Failure]) -> Path:
    """Write ``failures.csv``, sorted, without duplicates; return its path."""
    rows = [failure._asdict() for failure in sorted(set(failures))]
    _write_csv(out / FAILURES_NAME, list(Failure._fields), rows)
    return out / FAILURES_NAME


def write_utterances(
    out: Path,
    plan: Plan,
    rows: Mapping[str, Mapping[str, Row]],
    fields: Sequence[str],
) -> None:
    """Write ``utterances.csv``: a row per utterance and system.

    `rows` has fields by id, by system; `fields` are those of the metrics, in
    order.
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
