"""Processes that share a run: who leads, and who takes which shard.

They meet at a key-value store of torch.distributed: no collective operation,
so that a slow process holds nobody up. torchrun and Slurm say in the
environment who is who; shards go through the file system that all share.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol

from speechbrain_focalcodec.errors import DataError

__all__ = [
    "Alone",
    "Group",
    "StoreGroup",
    "check",
    "find_group",
    "first_host",
    "local_place",
    "together",
    "wait_for",
]

# How long others wait for the leader to list the corpus.
PATIENCE = timedelta(hours=12)
# How far apart processes may start.
_ARRIVAL = timedelta(minutes=30)
# How long a leader that gives up waits for the others to hear why.
_FAREWELL = 30.0  # seconds
# First, and how many: a job's number chooses. Below the ports that Linux
# gives to outgoing connections.
_PORTS = (20000, 12000)


class LeaderLost(DataError):
    """The process that leads a run has given up, or is gone."""


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

    def is_near_end(self, things: list[int]) -> bool:
        """Whether so few are left to take that nobody should take two."""

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

    def is_near_end(self, things: list[int]) -> bool:
        """Nobody waits for one."""
        return False

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

    def is_near_end(self, things: list[int]) -> bool:
        """Whether so few are left to take that nobody should take two."""
        return self.add("taken", 0) + 2 * self.size >= len(things)

    def add(self, key: str, number: int) -> int:
        """Add to a number that all share, and give the sum."""
        with _meeting():
            return self._store.add(key, number)


@contextmanager
def together(group: Group, seconds: float = _FAREWELL) -> Iterator[None]:
    """What ends the leader ends all, who are told why.

    Arguments
    ---------
    group : Group
        Those who share the run.
    seconds : float
        How long the leader waits for the others to hear it.

    Example
    -------
    >>> group = Alone()
    >>> with together(group):
    ...     raise DataError("the corpus is empty")
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.DataError: the corpus is empty
    >>> check(group)
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.jobs.group.LeaderLost: process 0 ... is empty
    """
    try:
        yield
    except Exception as error:
        # The store may be what is lost.
        with suppress(DataError):
            if group.rank == 0:
                group.tell("error", str(error) or type(error).__name__)
                group.add("stopped", 1)
                # Wakes those who wait for the plan.
                group.tell("plan", "")
                wait_for(
                    lambda: group.add("finished", 0) >= group.size - 1,
                    lambda: None,
                    seconds,
                )
            elif group.rank:
                group.add("finished", 1)
        raise


def check(group: Group) -> None:
    """Raise if the leader has given up.

    Arguments
    ---------
    group : Group
        Those who share the run.

    Raises
    ------
    DataError
        With the leader's reason.

    Example
    -------
    >>> check(Alone())
    """
    if group.add("stopped", 0):
        raise LeaderLost(
            f"process 0 of this run gave up: {group.hear('error')}"
        )


@contextmanager
def _meeting() -> Iterator[None]:
    """Tell that the leader is gone, and what to do."""
    try:
        yield
    except RuntimeError as error:
        raise LeaderLost(
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
        if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun has a store already, and a part of it for each restart.
            store, rank, size = next(
                dist.rendezvous("env://", timeout=PATIENCE)
            )
        else:
            if names[0] == "RANK":
                host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
            else:
                host, port = _slurm_address(env)
            store = dist.TCPStore(
                host,
                port,
                size,
                rank == 0,
                timeout=_ARRIVAL,
                # The leader lists the corpus while others still start.
                wait_for_workers=False,
            )
    except KeyError as error:
        raise DataError(
            f"{error.args[0]} is missing in the environment; start the run "
            "with torchrun or srun, see docs/scale.md"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"process {rank} of {size} cannot meet the others "
            f"({str(error).splitlines()[0]}); see docs/scale.md"
        ) from error
    return StoreGroup(dist.PrefixStore("focalcodec", store), rank, size)


def local_place(environ: dict[str, str] | None = None) -> tuple[int, int]:
    """Which process of its machine this one is, as the environment says.

    Arguments
    ---------
    environ : dict, optional
        The environment; the process's own by default.

    Returns
    -------
    place : int
        Its place, which is its GPU's number.
    number : int
        How many processes of the run are known to be on the machine.

    Example
    -------
    >>> local_place({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"})
    (3, 8)
    >>> local_place({"SLURM_LOCALID": "1"})
    (1, 2)
    """
    env = os.environ if environ is None else environ

    def number(names: tuple[str, ...], default: int) -> int:
        for name in names:
            # Slurm writes 4(x2),3 for three machines.
            if found := re.match(r"\d+", env.get(name, "")):
                return int(found[0])
        return default

    place = number(("LOCAL_RANK", "SLURM_LOCALID"), 0)
    size = number(("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"), 1)
    return place, max(size, place + 1)


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
    pause: float = 0.2,
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
