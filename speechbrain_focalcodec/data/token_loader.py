"""Batches of tokens that can be resumed exactly within an epoch."""

import functools
import json
from collections.abc import Iterator
from typing import Any

from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_focalcodec.data.token_sampler import TokenBatchSampler
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.errors import DataError

__all__ = ["TokenLoader"]

_FORMAT = 1  # of the saved state, and of the order it counts in


@register_checkpoint_hooks
class TokenLoader(SaveableDataLoader):
    """Loads batches of a token dataset and resumes exactly.

    Give it to ``Brain.fit`` in place of a dataset, and add it to the
    checkpointer: it saves the epoch and how many batches the trainer has
    taken; what workers have prefetched does not count. Going on within an
    epoch needs the same dataset, batches and number of ranks, and is refused
    otherwise; the number of workers may change.

    Each iteration is the next epoch, from 1 on, unless `set_epoch` says
    which. Batches are ``PaddedBatch``: ``batch.tokens.data`` int64 [B, N] and
    ``batch.tokens.lengths``, relative to the longest. Padding is zero, which
    is a token as well: use the lengths, or give `pad_token`.

    Arguments
    ---------
    dataset : TokenDataset
        The items.
    batch_size : int, optional
        Items of a batch.
    max_batch_tokens : int, optional
        Most tokens of a batch, padding included.
    shuffle, seed, bucketing, buffer_rows, drop_last, rank, world_size
        As for ``TokenBatchSampler``. Make the loader after
        ``ddp_init_group``.
    pad_token : int, optional
        What "tokens" are padded with.
    **loader_kwargs : dict
        For ``torch.utils.data.DataLoader``: num_workers, pin_memory, ...

    Example
    -------
    >>> from speechbrain.utils.checkpoints import Checkpointer
    >>> from make_tokens import make_tokens  # in tests/
    >>> folder = make_tokens(getfixture("tmp_path") / "tokens")
    >>> dataset = TokenDataset(folder)
    >>> folder = getfixture("tmp_path") / "save"
    >>> loader = TokenLoader(dataset, batch_size=4)
    >>> saver = Checkpointer(folder, {"loader": loader})
    >>> batches = iter(loader)
    >>> first = next(batches).id
    >>> _ = saver.save_checkpoint(end_of_epoch=False)
    >>> expected = next(batches).id
    >>> loader = TokenLoader(dataset, batch_size=4)
    >>> _ = Checkpointer(folder, {"loader": loader}).recover_if_possible()
    >>> next(iter(loader)).id == expected
    True
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        *,
        shuffle: bool = True,
        seed: int = 0,
        bucketing: bool | None = None,
        buffer_rows: int | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        pad_token: int | None = None,
        **loader_kwargs: Any,
    ):
        sampler = TokenBatchSampler(
            dataset,
            batch_size,
            max_batch_tokens,
            shuffle,
            seed,
            bucketing,
            buffer_rows,
            drop_last,
            rank,
            world_size,
        )
        collate: Any = PaddedBatch
        if pad_token is not None:
            padding = {"tokens": {"value": pad_token}}
            collate = functools.partial(
                PaddedBatch, per_key_padding_kwargs=padding
            )
        loader_kwargs.setdefault("collate_fn", collate)
        super().__init__(dataset, batch_sampler=sampler, **loader_kwargs)
        self._begun = False  # the epoch that is set
        self._resume: dict[str, Any] | None = None

    @property
    def epoch(self) -> int:
        """The epoch that is given, or given next."""
        return self.batch_sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration.

        Arguments
        ---------
        epoch : int
            The epoch; the first is 1.

        Raises
        ------
        DataError
            If a checkpoint was loaded that is within another epoch.
        """
        if self._resume is not None and self._resume["epoch"] != epoch:
            raise DataError(
                "the checkpoint of the token loader is within epoch "
                f"{self._resume['epoch']}, set_epoch says {epoch}: save and "
                "recover the epoch counter too, or make a new loader"
            )
        self.batch_sampler.set_epoch(epoch)
        self._begun = False

    def __iter__(self) -> Iterator[Any]:
        if self._resume is not None:
            self._go_on(self._resume)
            self._resume = None
        elif self._begun:
            self.set_epoch(self.epoch + 1)
        self._begun = True
        return super().__iter__()

    def _go_on(self, state: dict[str, Any]) -> None:
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
            if state["format"] != _FORMAT:
                raise ValueError(f"format {state['format']!r}")
            epoch, taken = int(state["epoch"]), state["batches"]
            if not isinstance(state["settings"], dict):
                raise ValueError("no settings")
            taken = taken if taken is None else int(taken)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: is no state of a token loader ({error}); use "
                "another checkpoint"
            ) from error
        self._resume = None
        if taken is not None and not end_of_epoch:
            # Judged when it is used: an evaluation loads checkpoints too.
            self._resume = state
        self.set_epoch(epoch + (taken is not None and end_of_epoch))
