"""A run: from a corpus of audio to a dataset of tokens, whole in the end."""

import json
import logging
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from speechbrain_focalcodec.corpus.finishing import (
    finish,
    finished,
    published,
    remove_leftovers,
    undamaged,
    write_failures,
)
from speechbrain_focalcodec.corpus.items import ItemTable
from speechbrain_focalcodec.corpus.layout import (
    DATA_NAME,
    INFO_NAME,
    DatasetInfo,
    ModelInfo,
    shard_name,
)
from speechbrain_focalcodec.corpus.lock import run_lock
from speechbrain_focalcodec.corpus.maker import ShardMaker
from speechbrain_focalcodec.corpus.plan import Plan, load_plan, make_plan
from speechbrain_focalcodec.corpus.shards import Failure, ShardFacts
from speechbrain_focalcodec.corpus.sources import open_source
from speechbrain_focalcodec.errors import DataError, abridge
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs.group import (
    Alone,
    Group,
    LeaderLost,
    check,
    local_place,
    together,
    wait_for,
)
from speechbrain_focalcodec.jobs.launch import cores
from speechbrain_focalcodec.jobs.report import Report

__all__ = [
    "LOST_AFTER",
    "MAX_FAILURES",
    "Tally",
    "begin",
    "default_batch",
    "default_workers",
    "num_items",
    "settings_of",
    "settle",
    "tokenize",
]

logger = logging.getLogger(__name__)

MAX_FAILURES = 0.05
# Without a batch from anyone for so long, a process that leads takes over.
LOST_AFTER = 600.0  # seconds
# How long a file may take to be seen by another machine (NFS keeps what it
# knows of a folder for up to a minute).
_SEEN_AFTER = 90.0  # seconds
_STALE_AFTER = 3600.0  # seconds: nobody writes a shard for so long


class Tally:
    """Counts what is done, and stops a run that fails too often.

    Arguments
    ---------
    out : str or Path
        The dataset's folder.
    plan : Plan
        Its plan.
    failed : int
        Failures in the shards that were there before; the leader knows.
    max_failures : float
        The largest share of items that may fail; rounded up to whole items.
    group : Group
        Those who share the run.
    report : Report
        Told of progress.
    """

    def __init__(
        self,
        out: str | Path,
        plan: Plan,
        failed: int,
        max_failures: float,
        group: Group,
        report: Report,
    ) -> None:
        self._out, self._plan, self._group = out, plan, group
        # 0.07 * 100 is a little above 7.
        self._allowed = math.ceil(max_failures * plan.items - 1e-6)
        self._share, self._report = max_failures, report
        self._failures = set[Failure]()
        self._check(group.add("failures", failed))

    def __call__(
        self, items: int, seconds: float, failures: list[Failure]
    ) -> None:
        """Count a batch; a DataError when too many items have failed."""
        check(self._group)
        self._failures.update(failures)
        done = self._group.add("items", items)
        # Whole milliseconds: a store adds integers.
        duration = self._group.add("ms", round(1000 * seconds)) / 1000
        failed = self._group.add("failures", len(failures))
        self._report.update(done, duration, failed)
        self._check(failed)

    def _check(self, failed: int) -> None:
        if failed <= self._allowed:
            return
        there = published(self._out, self._plan).values()
        failures = self._failures.union(*(set(f.failures) for f in there))
        path = write_failures(self._out, failures)
        reasons = "; ".join(reason for _, _, reason in sorted(failures)[:3])
        # The leader finds the same, and says it.
        kind = LeaderLost if self._group.rank else DataError
        raise kind(
            f"{failed} of {self._plan.items} items failed, more than "
            f"--max-failures {self._share:g} allows (all are in {path}): "
            f"{reasons}. Mend the files and run the same command again with "
            "--retry-failures, or allow more"
        )


def tokenize(
    source: str | Path,
    out: str | Path,
    interface: PretrainedFocalCodec,
    *,
    batch_duration: float | None = None,
    workers: int | None = None,
    items_per_shard: int | None = None,
    max_failures: float = MAX_FAILURES,
    retry_failures: bool = False,
    verify: bool = False,
    data_root: str | Path | None = None,
    group: Group | None = None,
    lost_after: float = LOST_AFTER,
    report: Report | None = None,
) -> DatasetInfo | None:
    """Turn a corpus into a dataset of tokens.

    A run that was killed is finished by running the same again: what is
    published is kept, byte for byte. A finished run is checked against its
    hashes and left as it is. A second run in a folder where one is at work
    is refused.

    Arguments
    ---------
    source : str or Path
        A folder, a manifest (JSON, CSV), a Kaldi folder or a list of files:
        see docs/sources.md.
    out : str or Path
        The dataset's folder: new, empty or of the same run.
    interface : PretrainedFocalCodec
        The model. Its precision, window and context belong to the plan.
    batch_duration : float, optional
        Seconds of audio encoded together; by default :func:`default_batch`.
    workers : int, optional
        Processes that read audio ahead of the model; 0 for a thread; by
        default :func:`default_workers`. A script
        that is run as a file must guard its entry by
        ``if __name__ == "__main__"`` when there are any.
    items_per_shard : int, optional
        By default a number that depends on the corpus's size.
    max_failures : float
        Share of the items that may fail, rounded up to whole ones.
    retry_failures : bool
        Whether to make shards again in which items failed.
    verify : bool
        Whether to read all shards that are there, and to make those again
        that are damaged.
    data_root : str or Path, optional
        What stands for ``{data_root}`` in a manifest.
    group : Group, optional
        Those who share the run; nobody by default.
    lost_after : float
        Without progress from anyone for so many seconds, the leader makes
        what others have left.
    report : Report, optional
        Told of progress.

    Returns
    -------
    DatasetInfo or None
        What was made; None in a process that does not lead.

    Raises
    ------
    DataError
        If the source is damaged, the folder holds something else, or too many
        items fail.
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> import shutil
    >>> from speechbrain_focalcodec.inference import PretrainedFocalCodec
    >>> tmp = getfixture("tmp_path")
    >>> (tmp / "speech").mkdir()
    >>> _ = shutil.copy(
    ...     "speechbrain_focalcodec/assets/demo.flac", tmp / "speech"
    ... )
    >>> interface = PretrainedFocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> info = tokenize(tmp / "speech", tmp / "tokens", interface, workers=0)
    >>> info.rows, info.tokens
    (1, 301)
    """
    if not 0 <= max_failures <= 1:
        raise ValueError(f"max_failures must be in 0..1, not {max_failures}")
    if batch_duration is None:
        batch_duration = default_batch(interface.device)
    if not batch_duration > 0:
        raise ValueError(f"batch_duration must be above 0: {batch_duration}")
    if workers is None:
        workers = default_workers(interface.device)
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, not {workers}")
    members: Group = group or Alone()
    shown = report or Report()
    lock = nullcontext() if members.rank else run_lock(out)
    with together(members), lock:
        plan, items, todo, done = begin(
            source,
            out,
            ModelInfo.of(interface.codec),
            settings_of(interface),
            items_per_shard=items_per_shard,
            data_root=data_root,
            retry_failures=retry_failures,
            verify=verify,
            group=members,
        )

        def make(
            indices: Iterable[int], before: Iterable[ShardFacts], by: Group
        ) -> None:
            failed = sum(len(facts.failures) for facts in before)
            tally = Tally(out, plan, failed, max_failures, by, shown)
            with ShardMaker(
                interface, plan, items, out, batch_duration, workers, tally
            ) as maker:
                for _ in maker.make(indices, lambda: by.is_near_end(todo)):
                    by.add("made", 1)

        if members.rank == 0:
            shown.begin(plan.items, sum(map(num_items, done)))
        try:
            if todo:
                make(members.take(todo), done, members)
            members.add("finished", 1)
            if members.rank:
                return None
            # All are waited for, even when nothing is left to do: whoever
            # comes late must find somebody who says so.
            wait_for(
                lambda: members.add("finished", 0) >= members.size,
                lambda: _show(members, shown),
                lost_after,
            )
            _show(members, shown)  # what others did last
        finally:
            shown.end()
        if (
            not todo
            and not verify
            and (info := finished(out, plan)) is not None
        ):
            remove_leftovers(out)
            return info
        if members.add("made", 0) >= len(todo):
            settle(out, plan)
        # What processes that were lost have left undone.
        there = published(out, plan)
        if retry_failures and members.add("made", 0) < len(todo):
            # Which of them are new, nobody can tell.
            there = {i: f for i, f in there.items() if not f.failures}
        if left := [index for index in todo if index not in there]:
            make(left, there.values(), Alone())
        return finish(out, plan, items)


def _show(group: Group, report: Report) -> int:
    """Tell what all have done so far, and give the number of items."""
    done = group.add("items", 0)
    if done and group.size > 1:
        seconds = group.add("ms", 0) / 1000
        report.update(done, seconds, group.add("failures", 0))
    return done


def settle(out: str | Path, plan: Plan) -> None:
    """Wait until shards that others have published are seen here.

    Arguments
    ---------
    out : str or Path
        The dataset's folder.
    plan : Plan
        Its plan.
    """

    wanted = {
        Path(shard_name(index, plan.shards)).name
        for index in range(plan.shards)
    }

    def all_there() -> bool:
        # Listing a folder has NFS look at it anew.
        names = {entry.name for entry in os.scandir(Path(out, DATA_NAME))}
        return wanted <= names

    wait_for(all_there, lambda: None, _SEEN_AFTER)


def settings_of(interface: PretrainedFocalCodec) -> dict[str, Any]:
    """Those of a model's options that can change tokens.

    Arguments
    ---------
    interface : PretrainedFocalCodec
        The model.

    Returns
    -------
    dict
        Precision, window and context; channel and strictness where they are
        not as usual.

    Example
    -------
    >>> settings_of(
    ...     PretrainedFocalCodec.from_pretrained("focalcodec_mini_50hz")
    ... )
    {'precision': None, 'window': 60.0, 'context': 2.0}
    """
    settings = {
        "precision": interface.codec.accelerated,
        "window": interface.window,
        "context": interface.context,
    }
    if interface.channel is not None:
        settings["channel"] = interface.channel
    if interface.strict:
        settings["strict"] = True
    return settings


def begin(
    source: str | Path,
    out: str | Path,
    model: ModelInfo,
    settings: dict[str, Any],
    *,
    items_per_shard: int | None = None,
    data_root: str | Path | None = None,
    retry_failures: bool = False,
    verify: bool = False,
    group: Group | None = None,
) -> tuple[Plan, ItemTable, list[int], list[ShardFacts]]:
    """Plan a run, or go on with one, and see what is done already.

    One process of a group does it; the others take what it says.

    Arguments
    ---------
    source, out, items_per_shard, data_root, retry_failures, verify, group
        See :func:`tokenize`.
    model : ModelInfo
        The model.
    settings : dict
        The options that can change tokens.

    Returns
    -------
    plan : Plan
        The plan.
    items : ItemTable
        Its items.
    todo : list of int
        The shards to make.
    done : list of ShardFacts
        Those that need not be made; the leader knows them alone.

    Raises
    ------
    DataError
        If the source is damaged, or the folder holds something else.
    """
    group = group or Alone()
    if group.rank:
        return _follow(Path(out), model, settings, group)
    plan, items = make_plan(
        out,
        open_source(Path(source), data_root and Path(data_root)),
        model,
        settings,
        items_per_shard,
    )
    done = published(out, plan)
    if verify:
        done = undamaged(out, plan, done)
    if retry_failures:
        done = {i: facts for i, facts in done.items() if not facts.failures}
    if len(done) < plan.shards:
        # A reader must not take what changes for complete.
        Path(out, INFO_NAME).unlink(missing_ok=True)
    _remove_stale(Path(out, DATA_NAME))
    _warn_of_changes(out, plan, items, done)
    todo = [index for index in range(plan.shards) if index not in done]
    group.tell("todo", json.dumps(todo))
    group.tell("plan", plan.digest())
    return plan, items, todo, list(done.values())


def _follow(
    out: Path, model: ModelInfo, settings: dict[str, Any], group: Group
) -> tuple[Plan, ItemTable, list[int], list[ShardFacts]]:
    """Take the leader's plan."""
    digest = group.hear("plan")
    check(group)

    def same() -> bool:
        with suppress(DataError):
            return load_plan(out)[0].digest() == digest
        return False

    wait_for(same, lambda: None, _SEEN_AFTER)
    plan, items = load_plan(out)
    if plan.digest() != digest:
        raise DataError(
            f"{out}: has another plan than that of process 0; is the folder "
            "shared by all machines?"
        )
    if (plan.model, plan.settings) != (model, settings):
        raise DataError(
            f"process {group.rank} has another model or other settings than "
            "process 0; give all the same"
        )
    return plan, items, json.loads(group.hear("todo")), []


def _warn_of_changes(
    out: str | Path, plan: Plan, items: ItemTable, done: dict[int, ShardFacts]
) -> None:
    """Tell which audio files have another size than when they were read."""
    changed = list[str]()
    shards = list[str]()
    with ThreadPoolExecutor() as pool:
        for index, facts in done.items():
            if not facts.sizes:
                continue
            failed = {item for item, _, _ in facts.failures}
            table = items.shard(index)
            paths = [
                str(items.open_path(path))
                for item, path in zip(
                    table["id"].to_pylist(),
                    table["path"].to_pylist(),
                    strict=True,
                )
                if item not in failed
            ]
            found = [
                path
                for path, before, now in zip(
                    paths, facts.sizes, pool.map(_size, paths), strict=True
                )
                if now not in (None, before)
            ]
            if found:
                changed += found
                shards.append(shard_name(index, plan.shards))
    if changed:
        logger.warning(
            "%s: %d audio files have another size than when their tokens "
            "were made: %s. To make these tokens again, remove %s and run "
            "the same command again",
            *(out, len(changed), abridge(changed), abridge(shards)),
        )


def _size(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:
        return None  # no longer there: its tokens are


def num_items(facts: ShardFacts) -> int:
    """Items of a shard, those that failed among them.

    Arguments
    ---------
    facts : ShardFacts
        The shard.

    Returns
    -------
    int
        Their number.
    """
    return facts.rows + len(facts.failures)


def _remove_stale(folder: Path) -> None:
    """Remove what a killed process was writing, unless it may still be."""
    for path in folder.glob(".tokens-*.parquet"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_AFTER:
                path.unlink()


def default_batch(device: torch.device | str) -> float:
    """Seconds of audio that are best encoded together.

    Arguments
    ---------
    device : torch.device or str
        Where the model is.

    Returns
    -------
    float
        Few on a CPU, whose caches hold no more; more on a GPU.

    Example
    -------
    >>> default_batch("cpu"), default_batch("cuda")
    (20.0, 240.0)
    """
    return 20.0 if torch.device(device).type == "cpu" else 240.0


def default_workers(device: torch.device | str) -> int:
    """Processes that read audio, as many as a model keeps busy.

    Arguments
    ---------
    device : torch.device or str
        Where the model is.

    Returns
    -------
    int
        1 on a CPU, which the model needs; up to 8 beside a GPU.

    Example
    -------
    >>> default_workers("cpu")
    1
    """
    if torch.device(device).type == "cpu":
        return 1
    share = cores()
    if "LOCAL_WORLD_SIZE" in os.environ:
        # torchrun binds nothing: all have the same ones.
        share //= local_place()[1]
    # One is left to the model.
    return min(8, max(share - 1, 1))
