"""Ends an evaluation: writes tables, figures and plots."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from speechbrain_focalcodec.metrics.base import Column, Metric, Row
from speechbrain_focalcodec.metrics.plan import Failure, Plan
from speechbrain_focalcodec.metrics.plots import plot_all
from speechbrain_focalcodec.metrics.report import to_markdown
from speechbrain_focalcodec.metrics.results import (
    FILES,
    PLOTS_NAME,
    REPORT_NAME,
    SUMMARY_NAME,
    Measurement,
    write_failures,
    write_utterances,
)
from speechbrain_focalcodec.metrics.summary import (
    Figure,
    Summary,
    SystemSummary,
    difference,
    figure,
    versions,
)
from speechbrain_focalcodec.metrics.systems.base import System
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["finish", "is_finished"]


def is_finished(out: Path) -> bool:
    """Whether all files of a finished evaluation are there."""
    files = all((out / name).is_file() for name in FILES)
    return files and (out / PLOTS_NAME).is_dir()


def finish(
    out: Path,
    plan: Plan,
    systems: Sequence[System],
    metrics: Sequence[Metric],
    results: Mapping[str, Mapping[str, Measurement]],
    failures: set[Failure],
    write: bool = True,
) -> Summary:
    """Summarise the measurements of an evaluation.

    Arguments
    ---------
    out : Path
        The evaluation's folder.
    plan : Plan
        Its plan.
    systems, metrics : sequence
        The systems and metrics.
    results : mapping
        Measurements by system and utterance.
    failures : set of Failure
        All failures.
    write : bool
        Whether to write the files.

    Returns
    -------
    Summary
        The figures.
    """
    names = [metric.name for metric in metrics]
    measured = {
        system.name: [
            results[system.name][it.id]
            for it in plan.utterances
            if it.id in results[system.name]
        ]
        for system in systems
    }
    rows = {
        system: {
            it.id: it.fields(names) for it in found if it.output is not None
        }
        for system, found in measured.items()
    }
    fields = dict.fromkeys(
        field
        for name in names
        for found in measured.values()
        for it in found
        for field in it.rows.get(name, {})
    )
    seed = plan.options.seed
    columns = tuple(column for metric in metrics for column in metric.columns)
    durations = {it.id: it.duration for it in plan.utterances}
    # Some headers are right, and the file is damaged.
    unreadable = {it.id for it in failures if not it.system}
    readable = [it for it in plan.utterances if it.id not in unreadable]
    summaries = [
        SystemSummary(
            name=system.name,
            fingerprint=system.fingerprint,
            utterances=len(rows[system.name]),
            failures=len({f.id for f in failures if f.system == system.name}),
            bitrate=_ratio("bits", rows[system.name], durations),
            real_time_factor=_ratio("seconds", rows[system.name], durations),
            figures={
                column.key: figure(
                    column, list(rows[system.name].values()), seed
                )
                for column in columns
            },
            codes=_codes_of(system, measured[system.name]),
        )
        for system in systems
    ]
    base = next((it for it in summaries if it.compresses), summaries[0]).name
    summary = Summary(
        task=plan.options.task,
        data=plan.data,
        utterances=len(readable),
        unreadable=len(unreadable),
        duration=sum(it.duration for it in readable),
        seed=seed,
        columns=columns,
        metrics={metric.name: metric.fingerprint for metric in metrics},
        systems=[
            replace(
                it, differences=_differences(it.name, base, columns, rows, seed)
            )
            for it in summaries
        ],
        versions=versions(),
        base=base,
        min_duration=plan.options.min_duration,
    )
    if write:
        write_utterances(out, plan, rows, list(fields))
        write_failures(out, failures)
        plot_all(out / PLOTS_NAME, summary, rows)
        atomic_write_text(out / REPORT_NAME, to_markdown(summary))
        # The last file: its presence shows that all are complete.
        text = json.dumps(summary.to_dict(), indent=2, allow_nan=False)
        atomic_write_text(out / SUMMARY_NAME, text + "\n")
    return summary


def _differences(
    system: str,
    base: str,
    columns: Sequence[Column],
    rows: Mapping[str, Mapping[str, Row]],
    seed: int,
) -> dict[str, Figure]:
    if system == base:
        return {}
    return {
        column.key: difference(column, rows[system], rows[base], seed)
        for column in columns
    }


def _ratio(
    name: str, rows: Mapping[str, Row], durations: Mapping[str, float]
) -> float | None:
    """Sum of a field per second, over the utterances that have it."""
    having = {
        id: float(value)
        for id, row in rows.items()
        if (value := row[name]) is not None
    }
    seconds = sum(durations[id] for id in having)
    return sum(having.values()) / seconds if seconds else None


def _codes_of(
    system: System, measured: Sequence[Measurement]
) -> dict[str, float]:
    counts: Counter[int] = Counter()
    for it in measured:
        counts.update(it.counts)
    if system.codebook_size is None or not counts:
        return {}
    from speechbrain_focalcodec.metrics.codes import code_statistics

    table = torch.zeros(system.codebook_size, dtype=torch.int64)
    table[list(counts)] = torch.tensor(list(counts.values()))
    return code_statistics(table)
