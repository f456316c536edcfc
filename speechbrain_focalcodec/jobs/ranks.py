"""Ranks: which process of a run this is, under torchrun, Slurm or alone.

Shard i belongs to rank i % world_size. Ranks do not talk to each other.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from speechbrain_focalcodec.errors import DataError

__all__ = ["SINGLE", "Rank", "cores", "find_rank", "local_rank"]


class Rank(NamedTuple):
    """One of the processes that share a run.

    Arguments
    ---------
    rank : int
        Number of this process, from 0.
    world_size : int
        Number of processes.

    Example
    -------
    >>> [shard for shard in range(8) if Rank(1, 3).owns(shard)]
    [1, 4, 7]
    """

    rank: int = 0
    world_size: int = 1

    def owns(self, shard: int) -> bool:
        """Whether this rank makes a shard."""
        return shard % self.world_size == self.rank


SINGLE = Rank()


def find_rank(environ: Mapping[str, str] | None = None) -> Rank:
    """Read the rank from the environment of torchrun or srun.

    Arguments
    ---------
    environ : mapping, optional
        The environment with RANK and WORLD_SIZE, or SLURM_PROCID and
        SLURM_STEP_NUM_TASKS; the process's own by default.

    Returns
    -------
    Rank
        The rank; `SINGLE` without these variables.

    Raises
    ------
    DataError
        If the variables are not numbers, or do not fit together.
    """
    env = os.environ if environ is None else environ
    names = ("RANK", "WORLD_SIZE")
    # SLURM_NTASKS is set in the script of a job too, which runs once.
    if "RANK" not in env and "SLURM_STEP_NUM_TASKS" in env:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    first, second = env.get(names[0], "0"), env.get(names[1], "1")
    if not (
        first.isdecimal() and second.isdecimal() and int(first) < int(second)
    ):
        raise DataError(
            f"{names[0]}={first} and {names[1]}={second} in the environment "
            "must be a rank and the number of ranks; start the run with "
            "torchrun or srun"
        )
    return Rank(int(first), int(second))


def local_rank(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Read the rank within this machine, which is the number of its GPU.

    Arguments
    ---------
    environ : mapping, optional
        The environment; the process's own by default.

    Returns
    -------
    rank : int
        Rank on this machine.
    size : int
        Number of ranks known to run on this machine.
    """
    env = os.environ if environ is None else environ

    def number(names: tuple[str, ...], default: int) -> int:
        for name in names:
            # Slurm writes 4(x2),3 for three machines.
            if found := re.match(r"\d+", env.get(name, "")):
                return int(found[0])
        return default

    rank = number(("LOCAL_RANK", "SLURM_LOCALID"), 0)
    size = number(("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"), 1)
    return rank, max(size, rank + 1)


def cores() -> int:
    """Number of cores that this process may use; Slurm may bind it to some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
