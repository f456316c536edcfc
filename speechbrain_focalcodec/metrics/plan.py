"""The plan of an evaluation: which utterances, in which batches, by whom.

It is written before the first batch, and who goes on with the evaluation must
have come to the same one.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from speechbrain_focalcodec.corpus.sources import Item, Source, open_source
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.audio import AudioJob, Header
from speechbrain_focalcodec.jobs.batching import plan_batches
from speechbrain_focalcodec.jobs.loading import Loader
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = [
    "Failure",
    "Options",
    "OtherEvaluationError",
    "Plan",
    "Utterance",
    "check_same",
    "draw_targets",
    "list_items",
]

PLAN_NAME = "work/plan.json"
# Speech of a target speaker that a reference is made of (s).
REFERENCE_DURATION = 60.0


class OtherEvaluationError(DataError):
    """A folder holds another evaluation than the one that is asked for."""


class Failure(NamedTuple):
    """What could not be measured, and why.

    Arguments
    ---------
    id : str
        The utterance.
    path : str
        Its file.
    system : str
        The codec; empty where the file itself cannot be read.
    reason : str
        One line.

    Example
    -------
    >>> Failure("a", "/a.wav", "", "is empty").reason
    'is empty'
    """

    id: str
    path: str
    system: str
    reason: str


class Utterance(BaseModel):
    """One utterance of an evaluation.

    `num_samples` and `sample_rate` are the file's own; `target` is who should
    be heard, in voice conversion.

    Example
    -------
    >>> Utterance(
    ...     id="a", path="/a.wav", num_samples=8000, sample_rate=16000
    ... ).duration
    0.5
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        """Its length in seconds."""
        return self.num_samples / self.sample_rate

    @property
    def job(self) -> AudioJob:
        """What has to be read."""
        return AudioJob(self.path, self.start, self.stop)


class Options(BaseModel):
    """What decides an evaluation, beside its data, systems and metrics.

    Example
    -------
    >>> Options().task
    'resynthesis'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["resynthesis", "voice conversion"] = "resynthesis"
    reference: str | None = None
    seed: int = 0
    limit: int | None = None
    min_duration: float = 0.0
    batch_duration: float = 20.0


class Plan(BaseModel):
    """What ``work/plan.json`` holds.

    `items` are all that was asked for; `unreadable` are those whose header
    says that they cannot be read, `utterances` the others that are not too
    short.
    `batches` are places in `utterances`. `references` are the utterances of
    each target speaker. `systems` and `metrics` are fingerprints by name.

    Example
    -------
    >>> sorted(Plan.model_fields)[:3]
    ['batches', 'data', 'format']
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    data: str
    options: Options
    items: list[tuple[Any, ...]]
    unreadable: list[Failure]
    utterances: list[Utterance]
    batches: list[list[int]]
    references: dict[str, list[Utterance]]
    systems: dict[str, str]
    metrics: dict[str, str]

    def save(self, out: Path) -> None:
        """Write it into an evaluation's folder."""
        atomic_write_text(out / PLAN_NAME, self.model_dump_json() + "\n")

    @property
    def total(self) -> int:
        """How many utterances are to be measured, readable or not."""
        return len(self.utterances) + len(self.unreadable)

    @classmethod
    def load(cls, out: Path) -> "Plan | None":
        """The plan of an evaluation's folder; None if there is none."""
        path = out / PLAN_NAME
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise OtherEvaluationError(
                f"{path}: is damaged, or of another version; give "
                "--overwrite to begin anew"
            ) from error

    @classmethod
    def make(
        cls,
        data: str,
        items: Sequence[Item],
        options: Options,
        systems: Mapping[str, str],
        metrics: Mapping[str, str],
        loader: Loader,
        pool: Sequence[Item] = (),
    ) -> "Plan":
        """Plan an evaluation.

        Arguments
        ---------
        data : str
            What the user calls the data.
        items : sequence of Item
            The utterances, sorted by id.
        options : Options
            The options.
        systems, metrics : mapping
            Fingerprints by name.
        loader : Loader
            Reads headers.
        pool : sequence of Item
            Voice conversion: the utterances that references are taken from.

        Returns
        -------
        Plan
            The plan, not yet written.

        Raises
        ------
        DataError
            If all are too short, or there is nobody whose voice could be
            taken.
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
                target = targets.get(item.id)
                found = _utterance(item, header, target)
                if found.duration >= options.min_duration:
                    utterances.append(found)
        if not utterances and not unreadable:
            raise DataError(
                f"{data}: has no utterance of {options.min_duration:g} s and "
                "more; give a lower --min-duration"
            )
        return cls(
            data=data,
            options=options,
            items=[_key(item) for item in items],
            unreadable=unreadable,
            utterances=utterances,
            batches=_plan_batches(utterances, options.batch_duration),
            references=_references(
                sorted({u.target for u in utterances if u.target is not None}),
                pool,
                loader,
            ),
            systems=dict(systems),
            metrics=dict(metrics),
        )


def list_items(
    source: str | Path | Iterable[Item], data_root: str | Path | None = None
) -> tuple[str, list[Item]]:
    """The items of a source, sorted by id.

    Arguments
    ---------
    source : str, Path, or iterable of Item
        What :func:`open_source` opens, or items.
    data_root : str or Path, optional
        What stands for ``{data_root}`` in a manifest.

    Returns
    -------
    name : str
        What the source is called.
    items : list of Item
        Its items.

    Raises
    ------
    DataError
        If the source is empty or damaged, or two items have one id.

    Example
    -------
    >>> list_items([Item("b", "/b.wav"), Item("a", "/a.wav")])[1][0].id
    'a'
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


def check_same(
    out: Path,
    plan: Plan,
    items: Sequence[Item],
    options: Options,
    systems: Mapping[str, str],
    metrics: Mapping[str, str],
) -> None:
    """Refuse to go on with another evaluation than that of the plan.

    More systems and metrics than before are none.

    Arguments
    ---------
    out : Path
        The evaluation's folder.
    plan : Plan
        Its plan.
    items, options, systems, metrics
        What is asked for now; see :meth:`Plan.make`.

    Raises
    ------
    OtherEvaluationError
        If anything else is asked for; the message names it.
    """
    problem = (
        _other_options(plan.options, options)
        or _other_data(plan.items, [_key(item) for item in items])
        or _others("model", plan.systems, systems)
        or _others("metric", plan.metrics, metrics)
    )
    if problem:
        raise OtherEvaluationError(
            f"{out}: holds another evaluation: {problem}. Give another --out, "
            "or --overwrite to begin anew"
        )


def _other_options(before: Options, now: Options) -> str:
    for name in Options.model_fields:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            return f"{name.replace('_', ' ')} was {old}, not {new}"
    return ""


def _other_data(before: list[tuple], now: list[tuple]) -> str:
    for old, new in zip(before, now, strict=False):
        if tuple(old) != new:
            return f"its data have {old[0]} ({old[1]}), not {new[0]} ({new[1]})"
    if len(before) != len(now):
        return f"its data have {len(before)} utterances, not {len(now)}"
    return ""


def _others(
    what: str, before: Mapping[str, str], now: Mapping[str, str]
) -> str:
    for name, fingerprint in before.items():
        if name not in now:
            return f"its {what}s include {name}; give it too"
        if now[name] != fingerprint:
            return f"its {what} {name} was another one of that name"
    return ""


def _key(item: Item) -> tuple:
    """What tells one item from another."""
    # Numbers as JSON gives them back.
    return (
        *(item.id, item.path, item.speaker, item.text),
        *(None if t is None else float(t) for t in (item.start, item.stop)),
    )


def _utterance(item: Item, header: Header, target: str | None) -> Utterance:
    return Utterance(
        id=item.id,
        path=item.path,
        num_samples=header.num_samples,
        sample_rate=header.sample_rate,
        speaker=item.speaker,
        text=item.text,
        start=item.start,
        stop=item.stop,
        target=target,
    )


def _plan_batches(
    utterances: Sequence[Utterance], batch_duration: float
) -> list[list[int]]:
    """Utterances of like length together, and of one target each."""
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
    """Draw a speaker for each utterance, whatever the others are.

    Arguments
    ---------
    items : sequence of Item
        The utterances that are converted.
    pool : sequence of Item
        The utterances whose speakers are drawn from.
    options : Options
        With the seed, and whether there is a reference.

    Returns
    -------
    dict
        The target speaker of each utterance, by its id.

    Raises
    ------
    DataError
        If an utterance has no other speaker than its own, or may have none.

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
    """About a minute of each target speaker."""
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
