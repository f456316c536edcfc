"""Processes that share a run: who leads, and who takes which shard.

They meet at a key-value store of torch.distributed: no collective operation,
so that a slow process holds nobody up. torchrun and Slurm say in the
environment who is who; shards go through the file system that all share.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from speechbrain_focalcodec.errors import DataError

__all__ = [
    "Alone",
    "Group",
    "StoreGroup",
    "find_group",
    "first_host",
    "wait_for",
]

# How long others wait for the leader to list the corpus.
PATIENCE = timedelta(hours=12)
_PORTS = (20000, 20000)  # first, and how many: a job's number chooses


class Group(Protocol):
    """What a run asks of those that share it.

    Example
    -------
    >>> group: Group = Alone()
    >>> list(group.take([3, 5]))
    [3, 5]
    """

    rank: int
    size: int

    def tell(self, key: str, value: str) -> None:
        """Leader: say something to all."""

    def hear(self, key: str) -> str:
        """Wait for what the leader says."""

    def take(self, things: list[int]) -> Iterator[int]:
        """Take things one by one; each is given to one process."""

    def add(self, key: str, number: int) -> int:
        """Add to a number that all share, and give the sum."""


class Alone:
    """A process that shares with nobody.

    Example
    -------
    >>> Alone().add("failures", 2)
    2
    """

    rank, size = 0, 1

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._sums: dict[str, int] = {}

    def tell(self, key: str, value: str) -> None:
        """Keep it."""
        self._said[key] = value

    def hear(self, key: str) -> str:
        """Give what was kept."""
        return self._said[key]

    def take(self, things: list[int]) -> Iterator[int]:
        """Take them all."""
        yield from things

    def add(self, key: str, number: int) -> int:
        """Add to a number."""
        self._sums[key] = self._sums.get(key, 0) + number
        return self._sums[key]


class StoreGroup:
    """Processes that meet at a store.

    Arguments
    ---------
    store : torch.distributed.Store
        The store, with a timeout of its own.
    rank : int
        Which process this is; 0 leads.
    size : int
        How many there are.

    Example
    -------
    >>> from torch.distributed import HashStore
    >>> store = HashStore()
    >>> groups = [StoreGroup(store, rank, 2) for rank in range(2)]
    >>> groups[0].tell("shards", "4")
    >>> groups[1].hear("shards")
    '4'
    >>> first, second = (group.take([7, 8, 9]) for group in groups)
    >>> next(first), next(second), next(second)
    (7, 8, 9)
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size

    def tell(self, key: str, value: str) -> None:
        """Leader: say something to all."""
        with _meeting():
            self._store.set(key, value)

    def hear(self, key: str) -> str:
        """Wait for what the leader says."""
        with _meeting():
            self._store.wait([key], PATIENCE)
            return self._store.get(key).decode()

    def take(self, things: list[int]) -> Iterator[int]:
        """Take things one by one; each is given to one process."""
        while (place := self.add("taken", 1) - 1) < len(things):
            yield things[place]

    def add(self, key: str, number: int) -> int:
        """Add to a number that all share, and give the sum."""
        with _meeting():
            return self._store.add(key, number)


@contextmanager
def _meeting() -> Iterator[None]:
    """Tell that the leader is gone, and what to do."""
    try:
        yield
    except RuntimeError as error:
        raise DataError(
            "lost the process that leads this run "
            f"({str(error).splitlines()[0]}); run the same command again: "
            "finished shards are kept"
        ) from error


def find_group(environ: dict[str, str] | None = None) -> Group:
    """Find out from the environment who shares this run.

    Under torchrun: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Under srun:
    SLURM_PROCID and SLURM_STEP_NUM_TASKS, with the step's first host as the
    address and a port that its job's number gives, unless MASTER_ADDR and
    MASTER_PORT say so. Alone otherwise.

    Arguments
    ---------
    environ : dict, optional
        The environment; the process's own by default, in which what torch
        needs of Slurm's is set.

    Returns
    -------
    Group
        The group; all others have to come before it is used.

    Raises
    ------
    DataError
        If the environment is incomplete, or the leader cannot be reached.

    Example
    -------
    >>> find_group({}).size
    1
    """
    env = os.environ if environ is None else environ
    names = ("RANK", "WORLD_SIZE")
    # Of a step that srun began, not of the job's script.
    if "RANK" not in env and "SLURM_STEP_NUM_TASKS" in env:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    try:
        rank, size = int(env.get(names[0], 0)), int(env.get(names[1], 1))
    except ValueError as error:
        raise DataError(
            f"{' and '.join(names)} in the environment must be numbers: {error}"
        ) from error
    if not 0 <= rank < size:
        raise DataError(
            f"{names[0]}={rank} and {names[1]}={size} in the environment do "
            "not fit; start the run with torchrun or srun"
        )
    if size == 1:
        return Alone()
    import torch.distributed as dist

    try:
        if names[0] == "RANK":
            # torchrun has a store already.
            store, rank, size = next(
                dist.rendezvous("env://", timeout=PATIENCE)
            )
        else:
            host, port = _slurm_address(env)
            store = dist.TCPStore(
                host,
                port,
                size,
                rank == 0,
                timeout=timedelta(minutes=30),
                wait_for_workers=False,
            )
    except (RuntimeError, ValueError, KeyError) as error:
        raise DataError(
            "the processes that share this run cannot meet "
            f"({str(error).splitlines()[0]}); see docs/scale.md"
        ) from error
    return StoreGroup(dist.PrefixStore("focalcodec", store), rank, size)


def _slurm_address(env: Any) -> tuple[str, int]:
    """Where the first process of a step listens."""
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST"))
    host = env.get("MASTER_ADDR") or first_host(nodes or "localhost")
    port = env.get("MASTER_PORT")
    if port is None:
        number = int(env["SLURM_JOB_ID"]) * 31 + int(env["SLURM_STEP_ID"])
        port = _PORTS[0] + number % _PORTS[1]
    return host, int(port)


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list.

    Arguments
    ---------
    nodes : str
        Such as ``gpu[03-05,09],big1``.

    Returns
    -------
    str
        Its name.

    Example
    -------
    >>> first_host("gpu[03-05,09]-ib,big1"), first_host("big1,big2")
    ('gpu03-ib', 'big1')
    """
    first = re.match(r"[^\[,]*(\[[^\]]*\][^\[,]*)*", nodes)
    name = first[0] if first else nodes
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", name)


def wait_for(
    done: Callable[[], bool],
    progress: Callable[[], object],
    seconds: float,
    pause: float = 1.0,
) -> bool:
    """Wait until something holds, as long as there is progress.

    Arguments
    ---------
    done : callable
        Whether it holds.
    progress : callable
        A value that changes when there is progress.
    seconds : float
        How long to wait without progress.
    pause : float
        Seconds between two looks.

    Returns
    -------
    bool
        Whether it holds.

    Example
    -------
    >>> wait_for(lambda: True, int, 1.0), wait_for(lambda: False, int, 0.0)
    (True, False)
    """
    before, since = progress(), time.monotonic()
    while not done():
        now = progress()
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since >= seconds:
            return False
        time.sleep(pause)
    return True
