"""Measures the batches of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from speechbrain_focalcodec.audio.files import write_audio
from speechbrain_focalcodec.audio.resampling import resample
from speechbrain_focalcodec.codec import fit_length
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.engine import (
    Batch,
    failure_limit,
    process_shards,
)
from speechbrain_focalcodec.jobs.loading import Loader, Pending
from speechbrain_focalcodec.jobs.report import Counts, Report
from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Metric,
    Row,
    Sample,
)
from speechbrain_focalcodec.metrics.plan import Failure, Plan, Utterance
from speechbrain_focalcodec.metrics.results import (
    Measurement,
    Measurements,
    audio_path,
    plain,
    write_failures,
)
from speechbrain_focalcodec.metrics.systems.base import Output, System
from speechbrain_focalcodec.metrics.systems.original import ORIGINAL

__all__ = ["MAX_FAILURES", "Worker"]

MAX_FAILURES = 0.05
# Seconds of a target speaker's speech that outputs are compared with.
_VOICE_DURATION = 30.0
_WARM_UP = 1.0  # seconds of speech of a system's first call


class _Task(NamedTuple):
    """A system, and the metrics that are missing for a batch."""

    system: System
    is_new: bool  # whether the batch has no measurements yet
    metrics: list[Metric]


class _Utterances:
    """A batch of utterances, with speech of their target speaker."""

    def __init__(
        self,
        utterances: list[Utterance],
        voice: list[Utterance],
        tasks: list[_Task],
    ) -> None:
        self.utterances, self.tasks, self._voice = utterances, tasks, voice
        self.sigs: dict[str, torch.Tensor] = {}
        self.reasons: dict[str, str] = {}
        self.voice: list[tuple[torch.Tensor, int]] = []
        self._resampled: dict[int, dict[str, torch.Tensor]] = {}

    def batches(self) -> list[list[int]]:
        return [[*range(len(self.utterances) + len(self._voice))]]

    def read(self, loader: Loader, places: list[int]) -> Pending:
        return loader.sigs([it.job for it in (*self.utterances, *self._voice)])

    def receive(self, audio: Sequence[Any]) -> None:
        """Keep waveforms, and the reasons of those that failed."""
        number = len(self.utterances)
        for utterance, sig in zip(self.utterances, audio[:number], strict=True):
            if isinstance(sig, str):
                self.reasons[utterance.id] = sig
            elif len(sig) != utterance.num_samples:
                self.reasons[utterance.id] = (
                    f"{utterance.path}: has another length than when its "
                    "header was read; let nobody write it meanwhile"
                )
            else:
                self.sigs[utterance.id] = torch.from_numpy(sig)
        for utterance, sig in zip(self._voice, audio[number:], strict=True):
            if not isinstance(sig, str):
                pair = torch.from_numpy(sig), utterance.sample_rate
                self.voice.append(pair)
        if self._voice and not self.voice:
            raise DataError(
                f"{self._voice[0].path}: no audio of speaker "
                f"{self.utterances[0].target} can be read; mend it, or give "
                "--reference"
            )

    def sigs_at(self, rate: int) -> dict[str, torch.Tensor]:
        """The waveforms at some sample rate."""
        if rate not in self._resampled:
            rates = {it.id: it.sample_rate for it in self.utterances}
            self._resampled[rate] = {
                id: resample(sig, rates[id], rate)
                for id, sig in self.sigs.items()
            }
        return self._resampled[rate]

    def voice_at(self, rate: int) -> list[torch.Tensor]:
        """Speech of the target speaker at some sample rate."""
        return [resample(sig, own, rate) for sig, own in self.voice]


class Worker:
    """Measures the missing part of a plan.

    Arguments
    ---------
    plan : Plan
        The plan.
    out : Path
        The evaluation's folder.
    systems, metrics : sequence
        The systems and metrics.
    loader : Loader
        Reads audio at each file's own rate.
    max_failures : float
        Share of the utterances that may fail with a system.
    retry_failures : bool
        Whether to measure batches again in which something failed.
    save_audio : int
        Number of utterances whose outputs are kept.
    report : Report
        Receives the progress.

    Attributes
    ----------
    results : dict
        Measurements of each system, by its name.
    failures : set of Failure
        All failures so far.
    has_worked : bool
        Whether anything was measured.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        systems: Sequence[System],
        metrics: Sequence[Metric],
        loader: Loader,
        *,
        max_failures: float,
        retry_failures: bool,
        save_audio: int,
        report: Report,
    ) -> None:
        self.plan, self.out = plan, out
        self.systems, self.metrics = systems, metrics
        self.results = {it.name: Measurements(out, it.name) for it in systems}
        self.failures = set(plan.unreadable)
        self.has_worked = False
        self._loader, self._report = loader, report
        self._retry, self._share = retry_failures, max_failures
        self._saved = {
            it.id: place
            for place, it in enumerate(plan.utterances[:save_audio])
        }
        self._warm: set[str] = set()
        # The last target's reference, by system.
        self._references: dict[str, tuple[str | None, Any]] = {}

    def run(self) -> None:
        """Measure all batches; a DataError if too many utterances fail."""
        batches = list(self._batches())
        self.has_worked = bool(batches)
        left = sum(len(it.utterances) * len(it.tasks) for it in batches)
        total = len(self.plan.utterances) * len(self.systems)
        counts = Counts()
        self._report.begin(total, total - left)

        def process(batch: Batch[_Utterances]) -> None:
            given = batch.shard
            given.receive(batch.audio or ())
            for task in given.tasks:
                self._measure(given, task)
                duration = sum(it.duration for it in given.utterances)
                counts.add(len(given.utterances), duration)
                done, seconds, _ = counts.totals()
                self._report.update(done, seconds, self._check())

        try:
            self._check()
            # Each is dropped after its turn: it holds audio.
            todo = (batches.pop(0) for _ in range(len(batches)))
            for _ in process_shards(todo, self._loader, process):
                pass
        finally:
            self._report.end()

    def _batches(self) -> Iterator[_Utterances]:
        """Batches with missing measurements."""
        for places in self.plan.batches:
            utterances = [self.plan.utterances[place] for place in places]
            tasks = [
                task
                for system in self.systems
                if (task := self._task(utterances, system)) is not None
            ]
            voice = self.plan.references.get(utterances[0].target or "", [])
            if tasks:
                yield _Utterances(utterances, voice, tasks)

    def _task(
        self, utterances: list[Utterance], system: System
    ) -> _Task | None:
        """The missing measurements of a batch; None if there are none."""
        results = self.results[system.name]
        known = [results.get(it.id) for it in utterances]
        measured = [it for it in known if it is not None]
        if len(measured) < len(known) or (
            self._retry and any(it.failures for it in measured)
        ):
            return _Task(system, True, list(self.metrics))
        self._record_failures(utterances, measured)
        outputs = [it for it in measured if it.output is not None]
        metrics = [
            metric
            for metric in self.metrics
            if any(metric.name not in it.rows for it in outputs)
        ]
        is_saved = all(
            audio_path(
                self.out, system.name, self._saved[it.id], it.id
            ).is_file()
            for it in outputs
            if it.id in self._saved
        )
        if metrics or not is_saved:
            return _Task(system, False, metrics)
        return None

    def _measure(self, batch: _Utterances, task: _Task) -> None:
        """Measure one system's outputs of a batch, and keep the results."""
        system, results = task.system, self.results[task.system.name]
        if task.is_new:
            found = {
                it.id: Measurement(it.id, failures=[["", reason]])
                if (reason := batch.reasons.get(it.id))
                else Measurement(it.id)
                for it in batch.utterances
            }
            wanted = list(batch.sigs)
        else:
            found = {it.id: results[it.id] for it in batch.utterances}
            found = {
                id: replace(it, rows=dict(it.rows), failures=[*it.failures])
                for id, it in found.items()
            }
            wanted = [id for id in batch.sigs if found[id].output is not None]
        outputs, reasons = self._outputs(batch, system, wanted)
        for id, why in reasons.items():
            found[id].failures.append([system.name, why])
        for id, output in outputs.items():
            if id in self._saved:
                self._save_audio(batch, system, id, output)
            if task.is_new:
                found[id].output = plain(
                    {"bits": output.bits, "seconds": output.seconds}
                )
                found[id].counts = _count(output)
        samples = self._samples(batch, system, outputs)
        for metric in task.metrics:
            rows, reasons = _apply(metric, samples)
            for id, row in rows.items():
                found[id].rows[metric.name] = row
            for id, why in reasons.items():
                found[id].failures.append(
                    [system.name, f"{metric.name}: {why}"]
                )
        for it in found.values():
            it.failures = [
                [by, " ".join(why.split())] for by, why in it.failures
            ]
            it.fields([metric.name for metric in self.metrics])  # may refuse
        results.add(list(found.values()))
        self._record_failures(batch.utterances, list(found.values()))

    def _record_failures(
        self, utterances: list[Utterance], measured: list[Measurement]
    ) -> None:
        self.failures.update(
            Failure(utterance.id, utterance.path, by, reason)
            for utterance, it in zip(utterances, measured, strict=True)
            for by, reason in it.failures
        )

    def _outputs(
        self, batch: _Utterances, system: System, ids: Sequence[str]
    ) -> tuple[dict[str, Output], dict[str, str]]:
        """Outputs, and reasons of those that failed, by utterance."""
        if not ids:
            return {}, {}
        sigs = batch.sigs_at(system.sample_rate_input)
        self._warm_up(system, sigs[ids[-1]])
        if not batch.voice:

            def work(some: Sequence[str]) -> list[Output]:
                return system.resynthesize([sigs[id] for id in some])
        else:

            def work(some: Sequence[str]) -> list[Output]:
                voice = self._reference(batch, system)
                return [system.convert(sigs[id], voice) for id in some]

        found, reasons = _try(work, ids)
        for id, output in list(found.items()):
            if not torch.isfinite(output.sig).all():
                reasons[id] = "its output has samples that are not finite"
                del found[id]
        return found, reasons

    def _reference(self, batch: _Utterances, system: System) -> Any:
        target = batch.utterances[0].target
        known = self._references.get(system.name)
        if known is None or known[0] != target:
            voice = batch.voice_at(system.sample_rate_input)
            known = (target, system.prepare_reference(voice))
            self._references[system.name] = known
        return known[1]

    def _warm_up(self, system: System, sig: torch.Tensor) -> None:
        """Call the system once: the first call is slow."""
        if system.name in self._warm:
            return
        self._warm.add(system.name)
        short = sig[: round(_WARM_UP * system.sample_rate_input)]
        # A failure will occur again, and is reported then.
        _try(lambda ids: system.resynthesize([short]), [""])

    def _samples(
        self, batch: _Utterances, system: System, outputs: Mapping[str, Output]
    ) -> list[Sample]:
        originals = batch.sigs_at(SAMPLE_RATE)
        texts = {it.id: it.text for it in batch.utterances}
        voice = None
        if batch.voice:
            voice = torch.cat(batch.voice_at(SAMPLE_RATE))
            voice = voice[: round(_VOICE_DURATION * SAMPLE_RATE)]
        samples = []
        for id, output in outputs.items():
            sig = output.sig.detach().float().cpu()
            sig = resample(sig, system.sample_rate_output, SAMPLE_RATE)
            original = originals[id]
            samples.append(
                Sample(
                    id,
                    original,
                    fit_length(sig, len(original)),
                    texts[id],
                    voice,
                    output.toks,
                )
            )
        return samples

    def _save_audio(
        self, batch: _Utterances, system: System, id: str, output: Output
    ) -> None:
        place = self._saved[id]
        sigs = {system.name: (output.sig.cpu(), system.sample_rate_output)}
        # For listening side by side.
        if all(it.name != ORIGINAL for it in self.systems):
            rate = self.plan.utterances[place].sample_rate
            sigs[ORIGINAL] = (batch.sigs[id], rate)
        for name, (sig, rate) in sigs.items():
            path = audio_path(self.out, name, place, id)
            if not path.is_file():
                write_audio(path, sig.clamp(-1, 1), rate)

    def _check(self) -> int:
        """Return the number of failures; a DataError if they are too many."""
        everywhere = {it.id for it in self.failures if not it.system}
        for system in self.systems:
            failed = everywhere | {
                it.id for it in self.failures if it.system == system.name
            }
            if len(failed) <= failure_limit(self.plan.total, self._share):
                continue
            path = write_failures(self.out, self.failures)
            reasons = "; ".join(
                f"{it.id}: {it.reason}"
                for it in sorted(self.failures)
                if it.system in ("", system.name)
            )
            raise DataError(
                f"{len(failed)} of {self.plan.total} utterances failed "
                f"with {system.name}, more than --max-failures "
                f"{self._share:g} allows (all are in {path}): "
                f"{reasons[:500]}. Mend the files and begin anew with "
                "--overwrite, mend the codec and go on with --retry-failures, "
                "or allow more"
            )
        return len(self.failures)


def _apply(
    metric: Metric, samples: Sequence[Sample]
) -> tuple[dict[str, Row], dict[str, str]]:
    """Rows of all samples, empty where the metric failed, and reasons."""
    by_id = {sample.id: sample for sample in samples}
    rows, reasons = _try(
        lambda ids: metric([by_id[id] for id in ids]), list(by_id)
    )
    return {id: plain(rows.get(id, {})) for id in by_id}, reasons


def _try(
    work: Any, ids: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Results by utterance; one by one if the batch fails."""
    if not ids:
        return {}, {}
    try:
        with torch.no_grad():
            results = work(ids)
        if len(results) != len(ids):
            raise ValueError(f"{len(results)} results of {len(ids)}")
        return dict(zip(ids, results, strict=True)), {}
    except Exception as error:  # other codecs' tools may raise anything
        if len(ids) == 1:
            text = str(error) or "no message"
            return {}, {ids[0]: f"{type(error).__name__}: {text}"}
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for id in ids:
        one, why = _try(work, [id])
        found |= one
        reasons |= why
    return found, reasons


def _count(output: Output) -> dict[int, int]:
    """Number of occurrences of each token in an output."""
    if output.toks is None:
        return {}
    toks, counts = np.unique(output.toks.cpu().numpy(), return_counts=True)
    return dict(zip(toks.tolist(), counts.tolist(), strict=True))
