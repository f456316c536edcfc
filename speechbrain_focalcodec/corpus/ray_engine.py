"""A run on a Ray cluster: actors hold the model, and make shards.

The process that starts it plans, hands out shards, counts and finishes. An
actor that is lost is replaced, and its shards are made again; so a cluster may
shrink and grow.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.corpus.finishing import finish, finished
from speechbrain_focalcodec.corpus.layout import DatasetInfo, ModelInfo
from speechbrain_focalcodec.corpus.lock import run_lock
from speechbrain_focalcodec.corpus.ray_actors import Crew, Load, ShardWorker
from speechbrain_focalcodec.corpus.run import (
    MAX_FAILURES,
    Tally,
    begin,
    num_items,
    settings_of,
    settle,
)
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.group import Alone
from speechbrain_focalcodec.jobs.report import Report
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["RayOptions", "tokenize_with_ray"]


@dataclass(frozen=True)
class RayOptions:
    """Where workers run, how many, and what each takes.

    Arguments
    ---------
    address : str, optional
        A cluster's address, such as ``auto`` or ``ray://head:10001``; a
        cluster of this machine, for this run, when not given.
    workers : int, optional
        How many; as many as fit by default.
    gpus : float, optional
        GPUs of each, a part of one too; 1 by default when there are any.
    cpus : float
        Cores of each. Ray gives the model as many threads.

    Example
    -------
    >>> RayOptions(workers=4, gpus=0.5).cpus
    2.0
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
        """How many workers a cluster has room for, and the GPUs of each.

        Arguments
        ---------
        resources : dict
            ``CPU`` and ``GPU`` of the cluster.

        Returns
        -------
        number : int
            Workers.
        gpus : float
            GPUs of each.

        Raises
        ------
        DataError
            If there is no room for one, in a cluster of this machine.

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
    and each can go on with what the other has begun.

    Arguments
    ---------
    source, out
        The corpus and the dataset's folder.
    load : callable
        Loads the model onto the device that it is given, or the best one for
        None. It is sent to the actors.
    options : RayOptions, optional
        Where workers run, how many, and what each takes.
    device : str, optional
        The device of each worker; its GPU or the CPU by default.
    batch_duration, workers, items_per_shard, max_failures, retry_failures,
    verify
        See :func:`speechbrain_focalcodec.corpus.run.tokenize`; `workers` read
        audio for one actor.
    data_root : str or Path, optional
        What stands for ``{data_root}`` in a manifest.
    report : Report, optional
        Told of progress.

    Returns
    -------
    DatasetInfo
        What was made.

    Raises
    ------
    ImportError
        If Ray is not installed.
    DataError
        If the source is damaged, the folder holds something else, too many
        items fail, or a shard ends its worker again and again.
    """
    ray = import_extra("ray", "ray")
    options = options or RayOptions()
    shown, group = report or Report(), Alone()
    # This process plans, on a CPU, before a cluster is asked for anything.
    interface = load("cpu")
    with run_lock(out):
        plan, items, todo, done = begin(
            # An actor has another working folder.
            Path(source).absolute(),
            Path(out).absolute(),
            ModelInfo.of(interface.codec),
            settings_of(interface),
            items_per_shard=items_per_shard,
            data_root=None if data_root is None else Path(data_root).absolute(),
            retry_failures=retry_failures,
            verify=verify,
            group=group,
        )
        del interface
        if (
            not todo
            and not verify
            and (info := finished(out, plan)) is not None
        ):
            return info
        shown.begin(plan.items, sum(map(num_items, done)))
        try:
            failed = sum(len(facts.failures) for facts in done)
            tally = Tally(out, plan, failed, max_failures, group, shown)
            if todo:
                with _cluster(ray, options.address):
                    size, gpus = options.fit(ray.cluster_resources())
                    actor = ray.remote(
                        num_cpus=options.cpus, num_gpus=gpus, max_restarts=0
                    )(ShardWorker)
                    crew = Crew(
                        ray,
                        lambda: actor.remote(
                            load,
                            device,
                            str(Path(out).absolute()),
                            plan.digest(),
                            batch_duration,
                            workers,
                        ),
                        size,
                        plan,
                        items,
                        tally,
                        group,
                    )
                    try:
                        crew.make(todo)
                    finally:
                        crew.end()
                settle(out, plan)
            return finish(out, plan, items)
        finally:
            shown.end()


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, unless the caller is; end what was begun."""
    if ray.is_initialized():
        yield
        return
    # A cluster of this run's own tells nobody of it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(
            # Not the cluster of $RAY_ADDRESS unless asked for.
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
        yield
    finally:
        ray.shutdown()
