"""Measuring batch after batch of an evaluation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechbrain_focalcodec.audio.files import write_audio
from speechbrain_focalcodec.audio.resampling import resample
from speechbrain_focalcodec.codec import fit_length
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.loading import Loader, Pending, read_ahead
from speechbrain_focalcodec.jobs.report import Report
from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Metric,
    Row,
    Sample,
)
from speechbrain_focalcodec.metrics.plan import Failure, Plan, Utterance
from speechbrain_focalcodec.metrics.results import (
    Part,
    Parts,
    audio_path,
    plain,
    write_failures,
)
from speechbrain_focalcodec.metrics.systems.base import Output, System
from speechbrain_focalcodec.metrics.systems.original import ORIGINAL

__all__ = ["MAX_FAILURES", "Worker"]

MAX_FAILURES = 0.05
# Speech of a target speaker that outputs are compared with (s).
_VOICE_DURATION = 30.0
_WARM_UP = 1.0  # seconds of speech that a system is tried on


@dataclass
class _Work:
    """What is left to do of one batch, by one system."""

    system: System
    part: Part | None  # what is there already
    metrics: list[Metric]


@dataclass
class _Batch:
    """Some utterances, on their way from the disk."""

    index: int
    utterances: list[Utterance]
    work: list[_Work]
    pending: Pending
    pending_voice: Pending
    sigs: dict[str, torch.Tensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    voice: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    _resampled: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def sigs_at(self, rate: int) -> dict[str, torch.Tensor]:
        """The waveforms at some rate."""
        if rate not in self._resampled:
            rates = {it.id: it.sample_rate for it in self.utterances}
            self._resampled[rate] = {
                id: resample(sig, rates[id], rate)
                for id, sig in self.sigs.items()
            }
        return self._resampled[rate]

    def voice_at(self, rate: int) -> list[torch.Tensor]:
        """Speech of the target speaker at some rate."""
        return [resample(sig, own, rate) for sig, own in self.voice]


class Worker:
    """Does what is left to do of a plan.

    Arguments
    ---------
    plan : Plan
        The plan.
    out : Path
        The evaluation's folder.
    systems, metrics : sequence
        Those of the plan.
    loader : Loader
        Reads audio at each file's own rate.
    max_failures : float
        Share of the utterances that may fail with a system.
    retry_failures : bool
        Whether to do batches again in which something failed.
    save_audio : int
        Of how many utterances to keep the outputs.
    report : Report
        Told of progress.

    Attributes
    ----------
    has_worked : bool
        Whether anything was left to do.
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
        self.has_worked = False
        self._loader, self._report, self._parts = loader, report, Parts(out)
        self._retry, self._share = retry_failures, max_failures
        self._saved = {
            it.id: place
            for place, it in enumerate(plan.utterances[:save_audio])
        }
        # 0.07 * 100 is a little above 7.
        self._allowed = math.ceil(max_failures * plan.total - 1e-6)
        self._failures = set(plan.unreadable)
        self._warm: set[str] = set()
        # The last target's reference, by system.
        self._references: dict[str, tuple[str | None, Any]] = {}

    def run(self) -> None:
        """Do it.

        Raises
        ------
        DataError
            If too much fails.
        """
        todo = [
            (index, work)
            for index in range(len(self.plan.batches))
            if (work := self._left(index))
        ]
        sizes = [len(batch) for batch in self.plan.batches]
        total = sum(sizes) * len(self.systems)
        left = sum(sizes[index] * len(work) for index, work in todo)
        done, seconds = 0, 0.0
        self._report.begin(total, total - left)
        try:
            self._check()
            depth = self._loader.workers + 1
            for batch in read_ahead(self._read(todo), depth):
                self._receive(batch)
                for one in batch.work:
                    self._do(batch, one)
                    done += len(batch.utterances)
                    seconds += sum(it.duration for it in batch.utterances)
                    self._check()
                    self._report.update(done, seconds, len(self._failures))
        finally:
            self._report.end()

    def _left(self, index: int) -> list[_Work]:
        """What a batch still needs."""
        works = []
        for system in self.systems:
            part = self._parts.read(index, system.name)
            if part is not None and self._retry and part.failures:
                part = None
            if part is None:
                works.append(_Work(system, None, list(self.metrics)))
                continue
            self._failures.update(part.failures)
            metrics = [it for it in self.metrics if it.name not in part.rows]
            is_heard = all(
                audio_path(self.out, system.name, self._saved[id], id).is_file()
                for id in part.outputs
                if id in self._saved
            )
            if metrics or not is_heard:
                works.append(_Work(system, part, metrics))
        return works

    def _read(self, todo: list[tuple[int, list[_Work]]]) -> Iterator[_Batch]:
        for index, work in todo:
            places = self.plan.batches[index]
            utterances = [self.plan.utterances[place] for place in places]
            voice = self.plan.references.get(utterances[0].target or "", [])
            yield _Batch(
                index,
                utterances,
                work,
                self._loader.sigs([it.job for it in utterances]),
                self._loader.sigs([it.job for it in voice]),
            )

    def _receive(self, batch: _Batch) -> None:
        """Wait for a batch's audio."""
        self.has_worked = True
        sigs = batch.pending.result()
        for utterance, sig in zip(batch.utterances, sigs, strict=True):
            if isinstance(sig, str):
                batch.reasons[utterance.id] = sig
            elif len(sig) != utterance.num_samples:
                batch.reasons[utterance.id] = (
                    f"{utterance.path}: has another length than when the "
                    "evaluation began; let nobody write it meanwhile"
                )
            else:
                batch.sigs[utterance.id] = torch.from_numpy(sig)
        target = batch.utterances[0].target
        if target is None:
            return
        voice = self.plan.references[target]
        for utterance, sig in zip(
            voice, batch.pending_voice.result(), strict=True
        ):
            if not isinstance(sig, str):
                batch.voice.append(
                    (torch.from_numpy(sig), utterance.sample_rate)
                )
        if not batch.voice:
            raise DataError(
                f"{voice[0].path}: no audio of speaker {target} can be read; "
                "mend it, or give --reference"
            )

    def _do(self, batch: _Batch, work: _Work) -> None:
        """Have one system's outputs of a batch, judge and keep them."""
        system, part = work.system, work.part
        new = part is None
        part = Part(system=system.name) if part is None else part
        failures = {}
        if new:
            failures = {id: ("", why) for id, why in batch.reasons.items()}
        wanted = [id for id in batch.sigs if new or id in part.outputs]
        outputs, reasons = self._outputs(batch, system, wanted)
        failures |= {id: (system.name, why) for id, why in reasons.items()}
        for id, output in outputs.items():
            if id in self._saved:
                self._save_audio(batch, system, id, output)
            if new:
                part.outputs[id] = plain(
                    {"bits": output.bits, "seconds": output.seconds}
                )
                _count(part, output)
        samples = self._samples(batch, system, outputs)
        for metric in work.metrics:
            rows, reasons = _judge(metric, samples)
            part.rows[metric.name] = rows
            for id, why in reasons.items():
                failures[id] = (system.name, f"{metric.name}: {why}")
        paths = {it.id: it.path for it in batch.utterances}
        part.failures += [
            Failure(id, paths[id], by, " ".join(why.split()))
            for id, (by, why) in failures.items()
        ]
        part.flat([metric.name for metric in self.metrics])  # may refuse
        self._parts.write(batch.index, part)
        self._failures.update(part.failures)

    def _outputs(
        self, batch: _Batch, system: System, ids: Sequence[str]
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

        found, reasons = _guarded(work, ids)
        for id, output in list(found.items()):
            if not torch.isfinite(output.sig).all():
                reasons[id] = "its output has samples that are not finite"
                del found[id]
        return found, reasons

    def _reference(self, batch: _Batch, system: System) -> Any:
        target = batch.utterances[0].target
        known = self._references.get(system.name)
        if known is None or known[0] != target:
            voice = batch.voice_at(system.sample_rate_input)
            known = (target, system.prepare_reference(voice))
            self._references[system.name] = known
        return known[1]

    def _warm_up(self, system: System, sig: torch.Tensor) -> None:
        """The first call is slow, which is not the codec's fault."""
        if system.name in self._warm:
            return
        self._warm.add(system.name)
        short = sig[: round(_WARM_UP * system.sample_rate_input)]
        # What fails now will fail again, and is reported then.
        _guarded(lambda ids: system.resynthesize([short]), [""])

    def _samples(
        self, batch: _Batch, system: System, outputs: Mapping[str, Output]
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
        self, batch: _Batch, system: System, id: str, output: Output
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

    def _check(self) -> None:
        """Stop where too much has failed."""
        everywhere = {it.id for it in self._failures if not it.system}
        for system in self.systems:
            failed = everywhere | {
                it.id for it in self._failures if it.system == system.name
            }
            if len(failed) <= self._allowed:
                continue
            path = write_failures(self.out, self._failures)
            of_it = [
                it
                for it in sorted(self._failures)
                if it.system in ("", system.name)
            ]
            reasons = "; ".join(f"{it.id}: {it.reason}" for it in of_it[:3])
            raise DataError(
                f"{len(failed)} of {self.plan.total} utterances failed "
                f"with {system.name}, more than --max-failures "
                f"{self._share:g} allows (all are in {path}): {reasons}. Mend "
                "the files and begin anew with --overwrite, mend the codec "
                "and go on with --retry-failures, or allow more"
            )


def _judge(
    metric: Metric, samples: Sequence[Sample]
) -> tuple[dict[str, Row], dict[str, str]]:
    """Rows of all, empty where a metric failed, and why it did."""
    by_id = {sample.id: sample for sample in samples}
    rows, reasons = _guarded(
        lambda ids: metric([by_id[id] for id in ids]), list(by_id)
    )
    return {id: plain(rows.get(id, {})) for id in by_id}, reasons


def _guarded(
    work: Any, ids: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Results by utterance; one by one where all together fail."""
    if not ids:
        return {}, {}
    try:
        with torch.no_grad():
            results = work(ids)
        if len(results) != len(ids):
            raise ValueError(f"{len(results)} results of {len(ids)}")
        return dict(zip(ids, results, strict=True)), {}
    except Exception as error:  # whatever another codec's tool comes up with
        if len(ids) == 1:
            text = str(error) or "no message"
            return {}, {ids[0]: f"{type(error).__name__}: {text}"}
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for id in ids:
        one, why = _guarded(work, [id])
        found |= one
        reasons |= why
    return found, reasons


def _count(part: Part, output: Output) -> None:
    if output.toks is None:
        return
    toks, counts = np.unique(output.toks.cpu().numpy(), return_counts=True)
    for tok, count in zip(toks.tolist(), counts.tolist(), strict=True):
        part.counts[tok] = part.counts.get(tok, 0) + count
