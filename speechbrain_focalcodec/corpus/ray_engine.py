"""Tokenizes a corpus on a Ray cluster: actors hold the model and make shards.

This process plans, counts and writes the index. Ray restarts a lost actor and
repeats its shard, so a cluster may shrink and grow.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.corpus.finishing import finish, finished
from speechbrain_focalcodec.corpus.layout import (
    DATA_NAME,
    DatasetInfo,
    ModelInfo,
)
from speechbrain_focalcodec.corpus.lock import run_lock
from speechbrain_focalcodec.corpus.maker import ShardMaker
from speechbrain_focalcodec.corpus.plan import load_plan
from speechbrain_focalcodec.corpus.run import (
    MAX_FAILURES,
    Monitor,
    default_batch,
    default_workers,
    num_items,
    plan_work,
    settings_of,
    shards_left,
)
from speechbrain_focalcodec.corpus.shards import ShardFacts
from speechbrain_focalcodec.errors import DataError, FocalCodecError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs.processes import delay_signals
from speechbrain_focalcodec.jobs.ranks import SINGLE
from speechbrain_focalcodec.jobs.report import Report
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Load", "RayOptions", "ShardWorker", "tokenize_with_ray"]

# A shard is repeated so often when its actor is lost, and an actor restarted.
TASK_RETRIES = 2
RESTARTS = 10
# A network file system may show a new file late (NFS caches folders for up to
# a minute).
_VISIBLE_AFTER = 90.0  # seconds

Load = Callable[[str | None], PretrainedFocalCodec]


@dataclass(frozen=True)
class RayOptions:
    """Options of the Ray cluster and its workers.

    Arguments
    ---------
    address : str, optional
        A cluster's address, such as ``auto`` or ``ray://head:10001``; a
        cluster of this machine, for this run, when not given.
    workers : int, optional
        Number of workers; as many as fit by default.
    gpus : float, optional
        GPUs per worker, also fractions; 1 by default if there are any.
    cpus : float
        Cores per worker, which are its number of threads too.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    cpus: float = 2.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be 1 or more, not {self.workers}")
        for name, number in (("gpus", self.gpus or 0.0), ("cpus", self.cpus)):
            if not number >= 0:
                raise ValueError(f"{name} must be 0 or more, not {number}")

    def fit(self, resources: dict[str, float]) -> tuple[int, float]:
        """Number of workers that fit a cluster, and GPUs per worker.

        A DataError if not one fits a cluster of this machine.

        Example
        -------
        >>> RayOptions().fit({"CPU": 64.0, "GPU": 8.0})
        (8, 1.0)
        >>> RayOptions().fit({"CPU": 64.0})
        (32, 0.0)
        """
        have = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
        gpus = float(have["GPU"] > 0) if self.gpus is None else self.gpus
        need = {"CPU": self.cpus, "GPU": gpus}
        room = [have[name] // n for name, n in need.items() if n > 0]
        most = int(min(room, default=1))
        if not most and self.address is None:
            raise DataError(
                f"a worker needs {self.cpus:g} CPUs and {gpus:g} GPUs, and "
                f"there are {have['CPU']:g} and {have['GPU']:g}; give less "
                "with --ray-cpus and --ray-gpus"
            )
        return self.workers or max(most, 1), gpus


def tokenize_with_ray(
    source: str | Path,
    out: str | Path,
    load: Load,
    options: RayOptions | None = None,
    *,
    device: str | None = None,
    batch_duration: float | None = None,
    workers: int | None = None,
    items_per_shard: int | None = None,
    max_failures: float = MAX_FAILURES,
    retry_failures: bool = False,
    verify: bool = False,
    data_root: str | Path | None = None,
    report: Report | None = None,
) -> DatasetInfo:
    """Turn a corpus into a dataset of tokens, on a Ray cluster.

    Corpus, output folder and model must have the same paths on all machines.
    The dataset is that of :func:`speechbrain_focalcodec.corpus.run.tokenize`,
    and each can resume a run of the other.

    Arguments
    ---------
    source, out
        The corpus and the dataset's folder.
    load : callable
        Called with a device, or None for the best one; returns the model. It
        is pickled for the actors.
    options : RayOptions, optional
        The cluster and the workers.
    device : str, optional
        The device of each worker; its GPU or the CPU by default.
    batch_duration, workers, items_per_shard, max_failures, retry_failures,
    verify
        See :func:`speechbrain_focalcodec.corpus.run.tokenize`; `workers` is
        the number per actor.
    data_root : str or Path, optional
        Replaces ``{data_root}`` in a manifest.
    report : Report, optional
        Receives the progress, after each shard.

    Returns
    -------
    DatasetInfo
        Description of the dataset.

    Raises
    ------
    ImportError
        If Ray is not installed.
    DataError
        If the source is damaged, the folder holds something else, too many
        items fail, or a worker fails; the same call makes missing shards.
    """
    ray = import_extra("ray", "ray")
    options, report = options or RayOptions(), report or Report()
    # This process plans on a CPU, before it connects to a cluster.
    interface = load("cpu")
    out = Path(out).absolute()
    with run_lock(out):
        work = plan_work(
            # An actor has another working folder.
            Path(source).absolute(),
            out,
            ModelInfo.of(interface.codec),
            settings_of(interface),
            items_per_shard=items_per_shard,
            data_root=None if data_root is None else Path(data_root).absolute(),
            retry_failures=retry_failures,
            verify=verify,
        )
        del interface
        plan = work.plan
        if not (work.todo or verify) and (info := finished(out, plan)):
            return info
        report.begin(*work.size(SINGLE))
        try:
            monitor = Monitor(
                out, plan, work.num_failures, max_failures, report
            )
            if work.todo:
                monitor.check(work.num_failures)
                arguments = (load, device, str(out), plan.digest())
                with _cluster(ray, options.address) as is_shared:
                    for facts in _make(
                        ray,
                        options,
                        (*arguments, batch_duration, workers),
                        work.todo,
                        is_shared,
                    ):
                        monitor(
                            num_items(facts), facts.duration, facts.failures
                        )
                _wait_until_visible(out)
            return finish(out, plan, work.items)
        except ray.exceptions.RayError as error:
            left, total = shards_left(out)
            raise DataError(
                f"a Ray worker failed: {_reason(error)}; {left} of {total} "
                "shards are left: run the same command again, finished shards "
                "are kept"
            ) from error
        finally:
            report.end()


class ShardWorker:
    """Makes shards in a Ray actor; refuses another plan or another model."""

    def __init__(
        self,
        load: Load,
        device: str | None,
        out: str,
        digest: str,
        batch_duration: float | None,
        workers: int | None,
    ) -> None:
        plan, items = load_plan(out)
        interface = load(device)
        same = (ModelInfo.of(interface.codec), settings_of(interface)) == (
            plan.model,
            plan.settings,
        )
        if plan.digest() != digest or not same:
            raise DataError(
                f"{out}: has another plan, or a worker another model, than "
                "the process that plans; are files the same on all machines?"
            )
        if batch_duration is None:
            batch_duration = default_batch(interface.device)
        if workers is None:
            workers = default_workers(interface.device)
        self._maker = ShardMaker(
            interface, plan, items, out, batch_duration, workers
        )

    def make(self, shard: int) -> ShardFacts:
        """Make one shard, and return its facts."""
        [facts] = self._maker.make([shard])
        return facts


def _make(
    ray: Any,
    options: RayOptions,
    arguments: tuple[Any, ...],
    shards: list[int],
    is_shared: bool,
) -> Iterator[ShardFacts]:
    """Make shards in a pool of actors; facts come in any order."""
    from ray.util import ActorPool

    size, gpus = options.fit(ray.cluster_resources())
    actor = ray.remote(
        num_cpus=options.cpus,
        num_gpus=gpus,
        max_restarts=RESTARTS,
        max_task_retries=TASK_RETRIES,
    )(ShardWorker)
    # No more workers than shards.
    actors = [actor.remote(*arguments) for _ in range(min(size, len(shards)))]
    try:
        yield from ActorPool(actors).map_unordered(
            lambda actor, shard: actor.make.remote(shard), shards
        )
    finally:
        # They end with the connection of this run.
        for it in actors if is_shared else []:
            with suppress(Exception):  # it may be dead, or its cluster
                ray.kill(it)


def _wait_until_visible(out: Path) -> None:
    """Wait until the shards of other machines are visible here."""
    end = time.monotonic() + _VISIBLE_AFTER
    while shards_left(out)[0] and time.monotonic() < end:
        # Listing a folder refreshes the cache of NFS.
        os.listdir(out / DATA_NAME)
        time.sleep(0.2)


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[bool]:
    """Connect for this run; True if there is a connection already."""
    if ray.is_initialized():
        yield True
        return
    # A cluster of this run alone sends no usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local = {"include_dashboard": False} if address is None else {}
    try:
        # Ray sets a handler of SIGTERM, and an interruption breaks it.
        with delay_signals():
            ray.init(
                # The cluster of $RAY_ADDRESS is not used by default.
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **local,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise DataError(
            f"cannot use the Ray cluster {address or 'of this machine'} "
            f"({str(error).splitlines()[0]}); check --ray-address, and `ray "
            "status` there"
        ) from error
    try:
        yield False
    finally:
        ray.shutdown()


def _reason(error: Exception) -> str:
    """The cause of Ray's error, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FocalCodecError | ImportError):
        return str(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else ""
