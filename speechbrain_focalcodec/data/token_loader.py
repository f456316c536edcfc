"""Loads batches of tokens and resumes exactly within an epoch."""

import functools
from typing import Any

from speechbrain.dataio.batch import PaddedBatch

from speechbrain_focalcodec.data.batching import TokenBatchSampler
from speechbrain_focalcodec.data.resumable import ResumableLoader
from speechbrain_focalcodec.data.tokens import TokenDataset

__all__ = ["TokenLoader"]


class TokenLoader(ResumableLoader):
    """Loads batches of a token dataset and resumes exactly.

    Pass it to ``Brain.fit`` in place of a dataset, and add it to the
    checkpointer. To resume within an epoch takes the same dataset, batches and
    number of ranks.

    Batches are ``PaddedBatch``: ``batch.tokens.data`` int64 [B, N] and
    relative lengths ``batch.tokens.lengths`` [B]. Padding is zero, which is a
    token too: use the lengths, or set `pad_token`.

    Arguments
    ---------
    dataset : TokenDataset
        The items.
    batch_size : int, optional
        Items per batch.
    max_batch_tokens : int, optional
        Maximum number of tokens per batch, padding included.
    pad_token : int, optional
        Padding of "tokens".
    shuffle, seed, bucketing, buffer_rows, drop_last, rank, world_size
        As for
        :class:`~speechbrain_focalcodec.data.batching.TokenBatchSampler`. Make
        the loader after ``ddp_init_group``.
    **loader_kwargs : dict
        For ``torch.utils.data.DataLoader``: num_workers, pin_memory, ...

    Example
    -------
    >>> from make_tokens import make_tokens  # in tests/
    >>> from speechbrain.utils.checkpoints import Checkpointer
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
            *(dataset, batch_size, max_batch_tokens, shuffle, seed),
            *(bucketing, buffer_rows, drop_last, rank, world_size),
        )
        collate: Any = PaddedBatch
        if pad_token is not None:
            padding = {"tokens": {"value": pad_token}}
            collate = functools.partial(
                PaddedBatch, per_key_padding_kwargs=padding
            )
        loader_kwargs.setdefault("collate_fn", collate)
        super().__init__(dataset, sampler, **loader_kwargs)
