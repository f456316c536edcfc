"""Plans an evaluation: its utterances, batches and target speakers.

The plan depends on the data and the options alone, so that an evaluation
resumes with the same batches after a kill.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from speechbrain_focalcodec.corpus.sources import Item, Source, open_source
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.audio import AudioJob, Header
from speechbrain_focalcodec.jobs.batching import plan_batches
from speechbrain_focalcodec.jobs.loading import Loader

__all__ = [
    "Failure",
    "Options",
    "OtherEvaluationError",
    "Plan",
    "Utterance",
    "digest_of",
    "draw_targets",
    "list_items",
]

# Seconds of a target speaker's speech in a reference.
REFERENCE_DURATION = 60.0


class OtherEvaluationError(DataError):
    """A folder holds another evaluation."""


class Failure(NamedTuple):
    """An utterance that could not be measured.

    Arguments
    ---------
    id : str
        The utterance.
    path : str
        Its file.
    system : str
        The codec; empty if the file cannot be read.
    reason : str
        The error message, in one line.
    """

    id: str
    path: str
    system: str
    reason: str


class Utterance(NamedTuple):
    """One utterance of an evaluation.

    `num_samples` and `sample_rate` are the file's own; `target` is the target
    speaker of voice conversion.
    """

    id: str
    path: str
    num_samples: int
    sample_rate: int
    speaker: str | None = None
    text: str | None = None
    start: float | None = None
    stop: float | None = None
    target: str | None = None

    @property
    def duration(self) -> float:
        """Duration in seconds."""
        return self.num_samples / self.sample_rate

    @property
    def job(self) -> AudioJob:
        """The audio to read."""
        return AudioJob(self.path, self.start, self.stop)


class Options(BaseModel):
    """Options of an evaluation that change its results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["resynthesis", "voice conversion"] = "resynthesis"
    reference: str | None = None
    seed: int = 0
    limit: int | None = None
    min_duration: float = 0.0
    batch_duration: float = 20.0


@dataclass(frozen=True)
class Plan:
    """The utterances of an evaluation and their batches.

    Arguments
    ---------
    data : str
        Name of the data.
    options : Options
        The options.
    unreadable : list of Failure
        Utterances whose header cannot be read.
    utterances : list of Utterance
        The others, except those that are too short.
    batches : list of list of int
        Indices in `utterances`.
    references : dict
        Utterances of each target speaker.
    """

    data: str
    options: Options
    unreadable: list[Failure]
    utterances: list[Utterance]
    batches: list[list[int]]
    references: dict[str, list[Utterance]]

    @property
    def total(self) -> int:
        """Number of utterances to measure, readable or not."""
        return len(self.utterances) + len(self.unreadable)

    @classmethod
    def make(
        cls,
        data: str,
        items: Sequence[Item],
        options: Options,
        loader: Loader,
        pool: Sequence[Item] = (),
    ) -> "Plan":
        """Plan an evaluation.

        Arguments
        ---------
        data : str
            Name of the data.
        items : sequence of Item
            The utterances, sorted by id.
        options : Options
            The options.
        loader : Loader
            Reads headers.
        pool : sequence of Item
            Voice conversion: the utterances that references come from.

        Returns
        -------
        Plan
            The plan.

        Raises
        ------
        DataError
            If all are too short, or there is no target speaker.
        """
        jobs = [AudioJob(item.path, item.start, item.stop) for item in items]
        headers = loader.headers(jobs).result()
        unreadable, utterances = [], []
        converts = options.task == "voice conversion"
        targets = draw_targets(items, pool, options) if converts else {}
        for item, header in zip(items, headers, strict=True):
            if isinstance(header, str):
                reason = " ".join(header.split())
                unreadable.append(Failure(item.id, item.path, "", reason))
            else:
                found = _utterance(item, header, targets.get(item.id))
                if found.duration >= options.min_duration:
                    utterances.append(found)
        if not utterances and not unreadable:
            raise DataError(
                f"{data}: has no utterance of {options.min_duration:g} s and "
                "more; give a lower --min-duration"
            )
        names = sorted({u.target for u in utterances if u.target is not None})
        return cls(
            data,
            options,
            unreadable,
            utterances,
            _plan_batches(utterances, options.batch_duration),
            _references(names, pool, loader),
        )


def digest_of(items: Iterable[Item]) -> str:
    """SHA-256 of ids, paths, speakers, texts and times of items."""
    digest = hashlib.sha256()
    for item in items:
        times = (
            None if t is None else float(t) for t in (item.start, item.stop)
        )
        row = [item.id, item.path, item.speaker, item.text, *times]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def list_items(
    source: str | Path | Iterable[Item], data_root: str | Path | None = None
) -> tuple[str, list[Item]]:
    """List the items of a source, sorted by id.

    Arguments
    ---------
    source : str, Path, or iterable of Item
        A source as :func:`open_source` opens it, or items.
    data_root : str or Path, optional
        Replaces ``{data_root}`` in a manifest.

    Returns
    -------
    name : str
        Name of the source.
    items : list of Item
        Its items.

    Raises
    ------
    DataError
        If the source is empty or damaged, or two items have one id.
    """
    name = "items"
    if isinstance(source, str | Path):
        name = str(source)
        source = open_source(source, data_root)
    elif isinstance(source, Source):
        name = str(source.path)
    items = sorted(source, key=lambda item: item.id)
    if not items:
        raise DataError(f"{name}: has no utterances")
    for one, other in zip(items, items[1:], strict=False):
        if one.id == other.id:
            raise DataError(
                f"{name}: {one.path} and {other.path} have the same id "
                f"{one.id!r}; rename one"
            )
    return name, items


def _utterance(item: Item, header: Header, target: str | None) -> Utterance:
    return Utterance(
        item.id,
        item.path,
        header.num_samples,
        header.sample_rate,
        item.speaker,
        item.text,
        item.start,
        item.stop,
        target,
    )


def _plan_batches(
    utterances: Sequence[Utterance], batch_duration: float
) -> list[list[int]]:
    """Group utterances of similar length and of one target."""
    groups: dict[str, list[int]] = {}
    for place, utterance in enumerate(utterances):
        groups.setdefault(utterance.target or "", []).append(place)
    batches = []
    for _, places in sorted(groups.items()):
        # In milliseconds: rates may differ.
        lengths = [round(1000 * utterances[i].duration) for i in places]
        for batch in plan_batches(lengths, round(1000 * batch_duration)):
            batches.append([places[k] for k in batch])
    return batches


def draw_targets(
    items: Sequence[Item], pool: Sequence[Item], options: Options
) -> dict[str, str]:
    """Draw a target speaker for each utterance, independently of the others.

    Arguments
    ---------
    items : sequence of Item
        The utterances that are converted.
    pool : sequence of Item
        The utterances whose speakers are drawn.
    options : Options
        Options with the seed and the reference.

    Returns
    -------
    dict
        The target speaker of each utterance, by its id.

    Raises
    ------
    DataError
        If there is no other speaker, or an utterance's speaker is unknown.

    Example
    -------
    >>> items = [Item("a", "/a.wav", "anna"), Item("b", "/b.wav", "bert")]
    >>> draw_targets(items, items, Options())
    {'a': 'bert', 'b': 'anna'}
    """
    speakers = sorted({it.speaker for it in pool if it.speaker is not None})
    targets = {}
    for item in items:
        if item.speaker is None and options.reference is None:
            raise DataError(
                f"{item.path}: has no speaker, so that it is not known whose "
                "voice would be another one; give --reference, or a manifest "
                "with speakers"
            )
        others = [it for it in speakers if it != item.speaker]
        if not others:
            raise DataError(
                f"{item.path}: there is no other speaker than its own "
                "to convert it to; give --reference"
            )
        draw = random.Random(f"{options.seed} {item.id}")
        targets[item.id] = draw.choice(others)
    return targets


def _references(
    targets: Sequence[str], pool: Sequence[Item], loader: Loader
) -> dict[str, list[Utterance]]:
    """About a minute of speech of each target speaker."""
    references = {}
    for target in targets:
        items = [item for item in pool if item.speaker == target]
        jobs = [AudioJob(item.path, item.start, item.stop) for item in items]
        found: list[Utterance] = []
        for item, header in zip(
            items, loader.headers(jobs).result(), strict=True
        ):
            if not isinstance(header, str):
                found.append(_utterance(item, header, None))
            if sum(u.duration for u in found) >= REFERENCE_DURATION:
                break
        if not found:
            raise DataError(
                f"{items[0].path}: no audio of speaker {target} can be read; "
                "mend it, or give --reference"
            )
        references[target] = found
    return references
