"""Evaluates codecs: all systems and metrics process each batch in turn.

Measurements of a batch are saved before the next one begins, so that an
evaluation resumes after a kill.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechbrain_focalcodec.corpus.sources import Item
from speechbrain_focalcodec.jobs.loading import Loader
from speechbrain_focalcodec.jobs.report import Report
from speechbrain_focalcodec.metrics.base import Metric
from speechbrain_focalcodec.metrics.finishing import finish, is_finished
from speechbrain_focalcodec.metrics.plan import (
    Options,
    Plan,
    digest_of,
    list_items,
)
from speechbrain_focalcodec.metrics.results import (
    prepare_folder,
    read_settings,
    write_settings,
)
from speechbrain_focalcodec.metrics.summary import Summary
from speechbrain_focalcodec.metrics.systems.base import System
from speechbrain_focalcodec.metrics.worker import MAX_FAILURES, Worker

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["evaluate", "evaluate_codec", "speakers_of"]

BATCH_DURATION = 20.0  # seconds


def evaluate(
    source: str | Path | Iterable[Item],
    systems: Sequence[System],
    metrics: Sequence[Metric],
    out: str | Path,
    *,
    voice_conversion: bool = False,
    reference: str | Path | None = None,
    data_root: str | Path | None = None,
    limit: int | None = None,
    min_duration: float = 0.0,
    seed: int = 0,
    batch_duration: float | None = None,
    workers: int = 0,
    max_failures: float = MAX_FAILURES,
    retry_failures: bool = False,
    save_audio: int = 0,
    overwrite: bool = False,
    report: Report | None = None,
) -> Summary:
    """Measure codecs on a corpus, side by side.

    Writes ``utterances.csv``, ``failures.csv``, ``summary.json``,
    ``summary.md`` and ``plots/``. After a kill, the same call resumes. A
    finished evaluation is not measured again; with more systems or metrics
    than before, only these are measured.

    Arguments
    ---------
    source : str, Path, or iterable of Item
        A folder, a manifest (JSON, CSV), a Kaldi folder or a list of files:
        see docs/sources.md.
    systems : sequence of System
        The codecs; differences are from the first that compresses.
    metrics : sequence of Metric
        The metrics.
    out : str or Path
        The folder of the results: new, or of the same evaluation.
    voice_conversion : bool
        Whether to convert each utterance to another speaker's voice. Systems
        and metrics without voice conversion are left out.
    reference : str or Path, optional
        Voice conversion: source of the target speakers, by default `source`.
        A source without speakers counts as one speaker.
    data_root : str or Path, optional
        Replaces ``{data_root}`` in a manifest.
    limit : int, optional
        Number of utterances, the first by id; all by default.
    min_duration : float
        Utterances of fewer seconds are left out.
    seed : int
        Seed of target speakers and of bootstrap intervals.
    batch_duration : float, optional
        Seconds of speech per batch, padding included; 20 by default.
    workers : int
        Processes that read audio ahead; 0 for a thread. With processes, a
        script must guard its entry by ``if __name__ == "__main__"``.
    max_failures : float
        Share of the utterances that may fail with a system, rounded up to
        whole ones.
    retry_failures : bool
        Whether to measure batches with failures again.
    save_audio : int
        Number of utterances whose outputs are saved in ``audio/``.
    overwrite : bool
        Whether to remove an earlier evaluation in the folder.
    report : Report, optional
        Receives the progress.

    Returns
    -------
    Summary
        Content of ``summary.json``.

    Raises
    ------
    DataError
        If the source is damaged, the folder holds something else, or too
        many utterances fail.
    ValueError
        If an argument is out of range, or two systems or metrics have one
        name.

    Example
    -------
    >>> from speechbrain_focalcodec.metrics.base import Column
    >>> class Copy(System):
    ...     name, sample_rate_input, sample_rate_output = "copy", 16000, 16000
    ...     def encode(self, sig): return sig
    ...     def decode(self, codes): return codes
    ...     def bits(self, codes): return 16.0 * len(codes)
    >>> class Error(Metric):
    ...     name = "error"
    ...     columns = (Column("error", "error", "lower", "error"),)
    ...     def __call__(self, samples):
    ...         return [{"error": (s.output - s.original).abs().max().item()}
    ...                 for s in samples]
    >>> out = getfixture("tmp_path") / "out"
    >>> clip = Item("demo", "speechbrain_focalcodec/assets/demo.flac")
    >>> summary = evaluate([clip], [Copy()], [Error()], out)
    >>> round(summary["copy"].bitrate), summary["copy"].figures["error"].value
    (256000, 0.0)
    """
    _check_arguments(
        max_failures, batch_duration, limit, min_duration, save_audio, workers
    )
    if voice_conversion:
        systems, metrics = _converting(systems, metrics)
    elif reference is not None:
        raise ValueError("reference is for voice_conversion alone")
    _check_names("system", systems)
    _check_names("metric", metrics)
    out = Path(out)
    data, every = list_items(source, data_root)
    prepare_folder(out, overwrite)
    before = read_settings(out)
    if batch_duration is None:
        batch_duration = (
            before["options"]["batch_duration"] if before else BATCH_DURATION
        )
    options = Options(
        task="voice conversion" if voice_conversion else "resynthesis",
        reference=None if reference is None else str(reference),
        seed=seed,
        limit=limit,
        min_duration=min_duration,
        batch_duration=batch_duration,
    )
    items = every[:limit]
    settings = {
        "options": options.model_dump(),
        "items": [len(items), digest_of(items)],
        "systems": {system.name: system.fingerprint for system in systems},
        "metrics": {metric.name: metric.fingerprint for metric in metrics},
    }
    with Loader(None, workers) as loader:
        pool = every if reference is None else speakers_of(reference)
        if before is not None:
            write_settings(out, settings, before)
        plan = Plan.make(data, items, options, loader, pool)
        if before is None:
            write_settings(out, settings, before)
        worker = Worker(
            plan,
            out,
            systems,
            metrics,
            loader,
            max_failures=max_failures,
            retry_failures=retry_failures,
            save_audio=save_audio,
            report=report or Report(),
        )
        worker.run()
    # As text, since the order of systems and metrics counts.
    is_same = json.dumps(before) == json.dumps(settings)
    return finish(
        *(out, plan, systems, metrics, worker.results, worker.failures),
        write=worker.has_worked or not is_same or not is_finished(out),
    )


def evaluate_codec(
    codec: "FocalCodec",
    source: str | Path | Iterable[Item],
    metrics: Sequence[Metric],
    out: str | Path,
    **options: Any,
) -> Summary:
    """Measure a FocalCodec in memory, as after training.

    Arguments
    ---------
    codec : FocalCodec
        The model, on its device.
    source, metrics, out
        See :func:`evaluate`.
    **options
        Other arguments of :func:`evaluate`.

    Returns
    -------
    Summary
        The result of :func:`evaluate`.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> clip = Item("demo", "speechbrain_focalcodec/assets/demo.flac")
    >>> out = getfixture("tmp_path") / "out"
    >>> evaluate_codec(codec, [clip], [], out).systems[0].utterances
    1
    """
    from speechbrain_focalcodec.metrics.systems.focalcodec import (
        FocalCodecSystem,
    )

    return evaluate(source, [FocalCodecSystem(codec)], metrics, out, **options)


def _check_arguments(
    max_failures: float,
    batch_duration: float | None,
    limit: int | None,
    min_duration: float,
    save_audio: int,
    workers: int,
) -> None:
    if not 0 <= max_failures <= 1:
        raise ValueError(f"max_failures must be in 0..1, not {max_failures}")
    if batch_duration is not None and not batch_duration > 0:
        raise ValueError(f"batch_duration must be above 0: {batch_duration}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    for name, value in (
        ("min_duration", min_duration),
        ("save_audio", save_audio),
        ("workers", workers),
    ):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")


def _check_names(kind: str, items: Sequence[System | Metric]) -> None:
    names = [it.name for it in items]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {kind}s are called {name}; give it once")
    if kind == "system" and not names:
        raise ValueError("no system is to be evaluated; give at least one")


def _converting(
    systems: Sequence[System], metrics: Sequence[Metric]
) -> tuple[list[System], list[Metric]]:
    able = [system for system in systems if system.converts]
    if not able:
        names = ", ".join(system.name for system in systems)
        raise ValueError(f"none of these converts voices: {names}")
    return able, [metric for metric in metrics if metric.converts]


def speakers_of(reference: str | Path) -> list[Item]:
    """List utterances of target speakers; without speakers, all are of one."""
    _, items = list_items(reference)
    if any(item.speaker is not None for item in items):
        return [item for item in items if item.speaker is not None]
    name = Path(reference).absolute().stem
    return [item._replace(speaker=name) for item in items]
