"""States of the random number generators, kept in checkpoints."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process

from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.training.distributed import gather, num_processes

__all__ = ["RandomState", "mixed_seed", "seed_apart"]


class RandomState:
    """Saves and restores the random states of all processes.

    States of Python, NumPy and PyTorch (CPU and the process's GPU), so that a
    resumed run draws the same numbers. Add it to a checkpointer as a
    recoverable. States of loader workers are not saved: their random numbers
    must depend on epoch and utterance only, see
    :class:`~speechbrain_focalcodec.data.reader.RandomSegment`.
    """

    @mark_as_saver
    def _save(self, path: Path) -> None:
        states = gather(_get_states())
        if if_main_process():
            torch.save(states, path)

    @mark_as_loader
    def _recover(self, path: Path, end_of_epoch: bool) -> None:
        states = torch.load(path, map_location="cpu", weights_only=True)
        world = num_processes()
        if len(states) == world:
            _set_states(states[_rank()])
        elif not end_of_epoch:
            raise CheckpointError(
                f"{path.parent}: saved within an epoch, by {len(states)} "
                f"process(es); {world} would not find their places in the "
                f"data: resume with {len(states)}, or move this checkpoint "
                "away to go back to an epoch's end"
            )


# The decorator's default would have the main process save alone.
register_checkpoint_hooks(RandomState, save_on_main_only=False)


def seed_apart() -> None:
    """Seed each rank differently.

    SpeechBrain seeds all ranks alike for equal initial weights; dropout and
    noise would be equal too.
    """
    rank = _rank()
    if rank:
        seed = mixed_seed("rank", rank)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)


def mixed_seed(*parts: Any) -> int:
    """Seed of 63 bits from torch's initial seed and parts, such as an epoch."""
    return random.Random(f"{torch.initial_seed()}/{parts}").getrandbits(63)


def _rank() -> int:
    return torch.distributed.get_rank() if num_processes() > 1 else 0


def _get_states() -> dict[str, Any]:
    """States as types that ``weights_only`` accepts."""
    legacy: Any = np.random.get_state()
    name, keys, *rest = legacy
    states = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
