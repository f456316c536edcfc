"""A loader that can be resumed exactly within an epoch."""

import json
import os
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_focalcodec.errors import DataError

__all__ = ["BatchOrder", "ResumableLoader", "process_rank"]

_FORMAT = 1  # of the saved state and of the order of batches


class BatchOrder(Protocol):
    """Batch sampler whose batches depend on `settings` and `epoch` only."""

    epoch: int
    settings: dict[str, Any]

    def set_epoch(self, epoch: int) -> None: ...

    def __iter__(self) -> Iterator[list[int]]: ...

    def __len__(self) -> int: ...


@register_checkpoint_hooks
class ResumableLoader(SaveableDataLoader):
    """Loads the batches of a sampler and resumes exactly.

    Pass it to ``Brain.fit`` in place of a dataset, and add it to the
    checkpointer. It saves the epoch and the number of batches that the trainer
    has taken; batches that workers have prefetched do not count. To resume
    within an epoch takes the same settings of the sampler; the number of
    workers may change.

    Each iteration is the next epoch, from 1 on; ``set_epoch`` chooses one.

    Arguments
    ---------
    dataset : Dataset
        The items.
    batch_sampler : BatchOrder
        The batches of this rank.
    after_plain : bool
        Accept checkpoints that SpeechBrain's own loader saved at the end of an
        epoch. They hold no epoch: call ``set_epoch``.
    **loader_kwargs : dict
        For ``torch.utils.data.DataLoader``: num_workers, pin_memory, ...
    """

    def __init__(
        self,
        dataset: Any,
        batch_sampler: BatchOrder,
        after_plain: bool = False,
        **loader_kwargs: Any,
    ):
        super().__init__(dataset, batch_sampler=batch_sampler, **loader_kwargs)
        self._after_plain = after_plain
        self._begun = False  # the epoch that is set
        self._resume: dict[str, Any] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of this or the next iteration."""
        return self.batch_sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 1) of the next iteration.

        Raises DataError if the loaded checkpoint is within another epoch.
        """
        if self._resume is not None and self._resume["epoch"] != epoch:
            raise DataError(
                "the checkpoint of the loader is within epoch "
                f"{self._resume['epoch']}, set_epoch says {epoch}: save and "
                "recover the epoch counter too, or make a new loader"
            )
        self.batch_sampler.set_epoch(epoch)
        self._begun = False

    def __iter__(self) -> Iterator[Any]:
        if self._resume is not None:
            self._restore(self._resume)
            self._resume = None
        elif self._begun:
            self.set_epoch(self.epoch + 1)
        self._begun = True
        return super().__iter__()

    def _restore(self, state: dict[str, Any]) -> None:
        settings = self.batch_sampler.settings
        changed = [
            f"{name} was {state['settings'].get(name)!r}, is {value!r}"
            for name, value in settings.items()
            if state["settings"].get(name) != value
        ]
        if changed:
            raise DataError(
                f"cannot go on within epoch {state['epoch']}, after "
                f"{state['batches']} batches, as these have changed: "
                f"{'; '.join(changed)}. Use the same again, or a checkpoint "
                "of the end of an epoch"
            )
        self.set_epoch(state["epoch"])
        self._speechbrain_recovery_skip_to = state["batches"]
        self._iterator = None  # persistent workers start anew

    @mark_as_saver
    def _save(self, path: Any) -> None:
        state = self._resume
        if state is None:
            taken = None
            if self._begun:
                taken = self._speechbrain_iterator._num_yielded
            state = {
                "format": _FORMAT,
                "epoch": self.epoch,
                "batches": taken,
                "settings": self.batch_sampler.settings,
            }
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(state, stream, indent=1)

    @mark_as_loader
    def _load(self, path: Any, end_of_epoch: bool) -> None:
        try:
            with open(path, encoding="utf-8") as stream:
                state = json.load(stream)
            if self._after_plain and end_of_epoch and isinstance(state, int):
                return
            if state["format"] != _FORMAT:
                raise ValueError(f"format {state['format']!r}")
            epoch, taken = int(state["epoch"]), state["batches"]
            if not isinstance(state["settings"], dict):
                raise ValueError("no settings")
            taken = taken if taken is None else int(taken)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: is no state of this loader ({error}); use another "
                "checkpoint"
            ) from error
        self._resume = None
        if taken is not None and not end_of_epoch:
            # Checked when it is used: an evaluation loads checkpoints too.
            self._resume = state
        self.set_epoch(epoch + (taken is not None and end_of_epoch))


def process_rank() -> tuple[int, int]:
    """Rank and number of processes, of torch.distributed or torchrun."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        group = torch.distributed
        return group.get_rank(), group.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
