"""Turns a corpus of audio into a dataset of tokens."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

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
from speechbrain_focalcodec.jobs.engine import failure_limit
from speechbrain_focalcodec.jobs.processes import LocalRanks
from speechbrain_focalcodec.jobs.ranks import SINGLE, Rank, cores, local_rank
from speechbrain_focalcodec.jobs.report import Counts, Report

__all__ = [
    "MAX_FAILURES",
    "Monitor",
    "Work",
    "default_batch",
    "default_workers",
    "num_items",
    "plan_work",
    "settings_of",
    "shards_left",
    "tokenize",
]

logger = logging.getLogger(__name__)

MAX_FAILURES = 0.05


class Monitor:
    """Counts batches, reports progress, and ends a run that fails too often.

    Arguments
    ---------
    out : str or Path
        The dataset's folder.
    plan : Plan
        Its plan.
    failed : int
        Failures in the shards that are kept.
    max_failures : float
        Share of the items that may fail, rounded up to whole ones.
    report : Report
        Receives the progress.
    counts : Counts, optional
        Counts that other ranks share.
    """

    def __init__(
        self,
        out: str | Path,
        plan: Plan,
        failed: int,
        max_failures: float,
        report: Report,
        counts: Counts | None = None,
    ) -> None:
        self._out, self._plan = out, plan
        self._share, self._report = max_failures, report
        self._counts = counts or Counts()
        self._before, self._failures = failed, set[Failure]()

    def __call__(
        self, items: int, seconds: float, failures: list[Failure]
    ) -> None:
        """Count a batch; a DataError when too many items have failed."""
        self._failures.update(failures)
        self._counts.add(items, seconds, len(failures))
        self.check(self.show())

    def show(self) -> int:
        """Report the progress of all ranks; return the number of failures."""
        items, seconds, failed = self._counts.totals()
        self._report.update(items, seconds, self._before + failed)
        return self._before + failed

    def check(self, failed: int) -> None:
        """Raise a DataError if so many failures are too many."""
        total = self._plan.items
        if failed <= failure_limit(total, self._share):
            return
        done = published(self._out, self._plan).values()
        failures = self._failures.union(*(set(f.failures) for f in done))
        path = write_failures(self._out, failures)
        reasons = "; ".join(reason for _, _, reason in sorted(failures)[:3])
        raise DataError(
            f"{failed} of {total} items failed, more than --max-failures "
            f"{self._share:g} allows (all are in {path}): {reasons}. Mend the "
            "files and run the same command again with --retry-failures, or "
            "allow more"
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
    rank: Rank = SINGLE,
    others: LocalRanks | None = None,
    counts: Counts | None = None,
    report: Report | None = None,
) -> DatasetInfo | None:
    """Turn a corpus into a dataset of tokens.

    After a kill, the same call makes the missing shards and keeps the others,
    byte for byte. A finished run is checked against its hashes and not
    changed. A second run in the same folder at the same time is refused.

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
        default :func:`default_workers`. With processes, a script must guard
        its entry by ``if __name__ == "__main__"``.
    items_per_shard : int, optional
        By default a number that depends on the corpus's size.
    max_failures : float
        Share of the items that may fail, rounded up to whole ones.
    retry_failures : bool
        Whether to make shards again in which items failed.
    verify : bool
        Whether to read all finished shards, and to make damaged ones again.
    data_root : str or Path, optional
        Replaces ``{data_root}`` in a manifest.
    rank : Rank
        Rank of this process, which makes the shards of its rank. All ranks
        must be given the same arguments.
    others : LocalRanks, optional
        The other ranks, if rank 0 has started them and waits for them.
    counts : Counts, optional
        Counts that ranks of this machine share.
    report : Report, optional
        Receives the progress.

    Returns
    -------
    DatasetInfo or None
        Description of the dataset; None while shards of other ranks are
        missing, or if another rank has written ``dataset.json``. The last
        rank to finish writes it.

    Raises
    ------
    DataError
        If the source is damaged, the folder holds something else, too many
        items fail, or one of the `others` has failed.
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
    report = report or Report()
    with nullcontext() if rank.rank else run_lock(out):
        work = plan_work(
            source,
            out,
            ModelInfo.of(interface.codec),
            settings_of(interface),
            items_per_shard=items_per_shard,
            data_root=data_root,
            retry_failures=retry_failures,
            verify=verify,
            rank=rank,
        )
        report.begin(*work.size(rank if counts is None else SINGLE))
        try:
            monitor = Monitor(
                *(out, work.plan, work.num_failures, max_failures),
                *(report, counts),
            )
            if work.todo:
                monitor.check(work.num_failures)
                with ShardMaker(
                    *(interface, work.plan, work.items, out),
                    *(batch_duration, workers, monitor),
                ) as maker:
                    for _ in maker.make(work.todo):
                        pass
            lost = others.join(monitor.show) if others else []
        finally:
            report.end()
        if lost:
            left, total = shards_left(out)
            raise DataError(
                f"{left} of {total} shards are left: {'; '.join(lost)}; run "
                "the same command again: finished shards are kept"
            )
        made = work.todo or counts and counts.totals()[0]
        if not (made or verify) and (info := finished(out, work.plan)):
            remove_leftovers(out)
            return None if rank.rank else info
        if rank.world_size == 1 or others:
            return finish(out, work.plan, work.items)
    # Rank 0 writes the index where it waits for the others.
    if counts is not None or shards_left(out)[0]:
        return None
    # Another rank may find the same at this moment.
    with run_lock(out, wait=True):
        if finished(out, work.plan):
            return None
        done = published(out, work.plan).values()
        monitor.check(sum(len(facts.failures) for facts in done))
        return finish(out, work.plan, work.items)


def shards_left(out: str | Path) -> tuple[int, int]:
    """Number of missing shards of a planned run, and of all its shards."""
    plan, _ = load_plan(out)
    names = (shard_name(index, plan.shards) for index in range(plan.shards))
    return sum(not Path(out, it).is_file() for it in names), plan.shards


def settings_of(interface: PretrainedFocalCodec) -> dict[str, Any]:
    """Options of a model that can change tokens.

    Precision, window and context; channel and strictness if they differ from
    the defaults.
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


class Work(NamedTuple):
    """A plan and the missing shards of one rank.

    Arguments
    ---------
    plan : Plan
        The plan.
    items : ItemTable
        Its items.
    todo : list of int
        Shards to make.
    done : dict
        Facts of the shards that are kept, of all ranks, by number.
    """

    plan: Plan
    items: ItemTable
    todo: list[int]
    done: dict[int, ShardFacts]

    @property
    def num_failures(self) -> int:
        """Failures in the shards that are kept."""
        return sum(len(facts.failures) for facts in self.done.values())

    def size(self, rank: Rank) -> tuple[int, int]:
        """Number of a rank's items, and of those that are done."""
        per_shard, total = self.plan.items_per_shard, self.plan.items
        own = [i for i in range(self.plan.shards) if rank.owns(i)]
        return (
            sum(min(per_shard, total - i * per_shard) for i in own),
            sum(num_items(self.done[i]) for i in own if i in self.done),
        )


def plan_work(
    source: str | Path,
    out: str | Path,
    model: ModelInfo,
    settings: dict[str, Any],
    *,
    items_per_shard: int | None = None,
    data_root: str | Path | None = None,
    retry_failures: bool = False,
    verify: bool = False,
    rank: Rank = SINGLE,
) -> Work:
    """Plan a run, or resume one, and find its missing shards.

    Each rank lists the corpus and makes the same plan.

    Arguments
    ---------
    source, out, items_per_shard, data_root, retry_failures, verify, rank
        See :func:`tokenize`.
    model : ModelInfo
        The model.
    settings : dict
        The options that can change tokens.

    Returns
    -------
    Work
        The plan, and the shards to make.

    Raises
    ------
    DataError
        If the source is damaged, or the folder holds something else.
    """
    plan, items = make_plan(
        out,
        open_source(Path(source), data_root and Path(data_root)),
        model,
        settings,
        items_per_shard,
    )
    done = published(out, plan)
    own = {i: facts for i, facts in done.items() if rank.owns(i)}
    kept = undamaged(out, plan, own) if verify else own
    if retry_failures:
        kept = {i: facts for i, facts in kept.items() if not facts.failures}
    todo = [i for i in range(plan.shards) if rank.owns(i) and i not in kept]
    if todo:
        # Readers must not take the dataset for complete,
        Path(out, INFO_NAME).unlink(missing_ok=True)
        if rank.world_size > 1:
            # nor other ranks these shards for done.
            for index in todo:
                name = shard_name(index, plan.shards)
                Path(out, name).unlink(missing_ok=True)
    _warn_of_changes(out, plan, items, kept)
    done = {i: facts for i, facts in done.items() if i not in todo}
    return Work(plan, items, todo, done)


def _warn_of_changes(
    out: str | Path, plan: Plan, items: ItemTable, done: dict[int, ShardFacts]
) -> None:
    """Warn of audio files whose size has changed since they were read."""
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
    """Number of a shard's items, with those that failed."""
    return facts.rows + len(facts.failures)


def default_batch(device: torch.device | str) -> float:
    """Seconds of audio per batch: few on a CPU, whose caches are small."""
    return 20.0 if torch.device(device).type == "cpu" else 240.0


def default_workers(device: torch.device | str) -> int:
    """Number of processes that read audio: 1 on a CPU, up to 8 with a GPU."""
    if torch.device(device).type == "cpu":
        return 1
    share = cores()
    if "LOCAL_WORLD_SIZE" in os.environ:
        # torchrun binds no cores: all ranks see the same ones.
        share //= local_rank()[1]
    # One is left to the model.
    return min(8, max(share - 1, 1))
