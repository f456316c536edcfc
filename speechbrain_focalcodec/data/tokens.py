"""A token dataset as a SpeechBrain dataset."""

import copy
import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import DataPipeline
from speechbrain.utils.data_utils import batch_shuffle

from speechbrain_focalcodec.data.token_rows import (
    CACHE_BYTES,
    LazyRow,
    TokenRows,
)
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.modules.bsq import BinarySphericalQuantizer

__all__ = ["TokenDataset"]

_CHUNK = 2**14  # rows filtered at once


class TokenDataset(DynamicItemDataset):
    """The utterances of a token dataset, read on demand.

    It is used as any other ``DynamicItemDataset``; tokens stay on disk. Train
    with a :class:`~speechbrain_focalcodec.data.token_loader.TokenLoader`,
    which reads in the order of the files and resumes within an epoch.

    Keys: "id" (str), "tokens" (int64 [N]), "num_tokens" (int), "duration"
    (seconds), "num_samples", "sample_rate", "speaker", "text", "path" and the
    other columns of the manifest. Computed on demand: "codes" (float32 [N, d],
    from the tokens only) and, with `codec`, "feats" (quantized features,
    float32 [T, C]). `add_dynamic_item` adds others.

    Arguments
    ---------
    folder : str or Path
        Output of ``focalcodec tokenize``.
    output_keys : sequence of str or dict
        Keys of the items.
    dynamic_items : sequence of dict
        More items, as for ``DynamicItemDataset``.
    fingerprint : str, optional
        Refuse tokens of a model with another fingerprint.
    codec : FocalCodec, optional
        Refuse tokens of another model, and compute "feats". Pass a model on
        the CPU if workers load the data.
    verify : bool
        Compare the SHA-256 of all files, which reads them. Up to 256 MiB it
        is always done.
    cache_bytes : int
        Memory per process for row groups.

    Raises
    ------
    DataError
        If the dataset is incomplete, damaged or made by another model.

    Example
    -------
    >>> from make_tokens import make_tokens  # in tests/
    >>> folder = make_tokens(getfixture("tmp_path") / "tokens")
    >>> dataset = TokenDataset(folder)
    >>> dataset[0]["tokens"].dtype
    torch.int64
    >>> short = dataset.filtered_sorted(key_max_value={"num_tokens": 20})
    >>> short.set_output_keys(["id", "codes", "speaker"])
    >>> short[0]["codes"].shape[1]
    13
    """

    def __init__(
        self,
        folder: str | Path,
        output_keys: Sequence[str] | dict[str, str] = ("id", "tokens"),
        dynamic_items: Sequence[Any] = (),
        fingerprint: str | None = None,
        codec: Any = None,
        verify: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.rows = TokenRows(folder, verify, cache_bytes)
        self.selection: np.ndarray | None = None  # all rows
        self._digest: str | None = None
        model = self.info.model
        if codec is not None:
            _check_model(folder, model, codec.fingerprint)
        if fingerprint is not None:
            _check_model(folder, model, fingerprint)
        self.pipeline = DataPipeline(list(self.rows.keys))
        codes = _Codes(model.codebook_size)
        offered: dict[str, Callable] = {"codes": codes}
        if codec is not None:
            offered["feats"] = _Features(codec, codes)
        for key, func in offered.items():
            if key not in self.rows.keys:
                self.add_dynamic_item(func, "tokens", key)
        self.pipeline.add_dynamic_items(dynamic_items)
        self.set_output_keys(output_keys)

    @property
    def info(self) -> Any:
        """Content of `dataset.json`: model, counts, shards."""
        return self.rows.info

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.info.model.codebook_size

    @property
    def token_rate(self) -> float:
        """Tokens per second."""
        return self.info.model.token_rate

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each item, int32 [items]."""
        if self.selection is None:
            return self.rows.lengths
        return self.rows.lengths[self.selection]

    @property
    def groups(self) -> np.ndarray:
        """Row group that holds each item, int64 [items]."""
        return self.rows.group_of(self.row_numbers)

    @property
    def row_numbers(self) -> np.ndarray:
        """Row of each item in the files, int64 [items]."""
        if self.selection is None:
            return np.arange(len(self.rows))
        return self.selection

    @property
    def digest(self) -> str:
        """SHA-256 of the items and their order."""
        if self._digest is None:
            digest = hashlib.sha256()
            for shard in self.info.shards:
                digest.update(f"{shard.sha256} {shard.rows}\n".encode())
            if self.selection is not None:
                digest.update(self.selection.astype("<i8").tobytes())
            self._digest = digest.hexdigest()
        return self._digest

    @property
    def data(self) -> Mapping[str, dict]:
        """All rows by id, whether selected or not."""
        return _Table(self.rows)

    @property
    def data_ids(self) -> Sequence[str]:
        """The ids of the items."""
        return _Ids(self)

    def __len__(self) -> int:
        return len(self.rows) if self.selection is None else len(self.selection)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pipeline.compute_outputs(
            LazyRow(self.rows, self.row_number(index))
        )

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several items; each row group is visited once."""
        order = sorted(
            range(len(indices)), key=lambda i: self.row_number(indices[i])
        )
        items = {i: self[indices[i]] for i in order}
        return [items[i] for i in range(len(indices))]

    def row_number(self, index: int) -> int:
        """Row of an item in the files; negative indices count from the end."""
        index = range(len(self))[index]
        return index if self.selection is None else int(self.selection[index])

    def filtered_sorted(
        self,
        key_min_value: Mapping[str, Any] | None = None,
        key_max_value: Mapping[str, Any] | None = None,
        key_test: Mapping[str, Callable[[Any], Any]] | None = None,
        sort_key: str | None = None,
        reverse: bool = False,
        select_n: int | None = None,
    ) -> "TokenDataset":
        """Select and sort items; only their row numbers are held.

        Arguments
        ---------
        key_min_value, key_max_value : dict, optional
            Keep items whose value is at least, or at most, this, by key.
        key_test : dict, optional
            Keep items whose value passes the function, by key.
        sort_key : str, optional
            Sort by this key.
        reverse : bool
            Sort descending.
        select_n : int, optional
            Keep at most the first n, before they are sorted.

        Returns
        -------
        TokenDataset
            With its own output keys and dynamic items.
        """
        tests: list[tuple[str, Callable[[Any], Any]]] = [
            *(
                (k, partial(operator.le, v))
                for k, v in (key_min_value or {}).items()
            ),
            *(
                (k, partial(operator.ge, v))
                for k, v in (key_max_value or {}).items()
            ),
            *(key_test or {}).items(),
        ]
        rows = self.row_numbers
        if tests:
            # Lengths first: they are in memory.
            tests.sort(key=lambda test: test[0] != "num_tokens")
            kept, found = [], 0
            for start in range(0, len(rows), _CHUNK):
                part = rows[start : start + _CHUNK]
                for key, test in tests:
                    passed = [bool(test(x)) for x in self._values(key, part)]
                    part = part[np.array(passed, dtype=bool)]
                kept.append(part)
                found += len(part)
                if select_n is not None and found >= select_n:
                    break
            rows = np.concatenate([rows[:0], *kept])
        if select_n is not None:
            rows = rows[:select_n]
        if sort_key is not None:
            values = list(self._values(sort_key, rows))
            order = sorted(
                range(len(rows)), key=lambda i: (values[i], i), reverse=reverse
            )
            rows = rows[np.array(order, dtype=np.int64)]
        return self._subset(rows)

    def overfit_test(
        self, sample_count: int, total_count: int
    ) -> "TokenDataset":
        """Repeat the first `sample_count` items up to `total_count` items."""
        first = self.row_numbers[:sample_count]
        return self._subset(np.resize(first, total_count if len(first) else 0))

    def batch_shuffle(self, batch_size: int) -> "TokenDataset":
        """The same items with stretches of `batch_size` shuffled."""
        rows = torch.from_numpy(self.row_numbers)
        return self._subset(batch_shuffle(rows, batch_size).numpy())

    def _subset(self, rows: np.ndarray) -> "TokenDataset":
        subset = copy.copy(self)
        subset.selection, subset._digest = rows, None
        subset.pipeline = copy.deepcopy(self.pipeline)
        return subset

    def _values(self, key: str, rows: np.ndarray) -> Iterator[Any]:
        """Yield values of a key."""
        if key == "num_tokens":
            yield from self.rows.lengths[rows].tolist()
        elif key in self.rows.keys:
            for row in rows.tolist():
                yield self.rows.value(row, key)
        else:
            with self.output_keys_as([key]):
                for row in rows.tolist():
                    row = LazyRow(self.rows, row)
                    yield self.pipeline.compute_outputs(row)[key]


class _Codes:
    """Tokens [N] to codes [N, d]."""

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size

    def __call__(self, toks: torch.Tensor) -> torch.Tensor:
        quantizer = BinarySphericalQuantizer(self.codebook_size)
        return quantizer.toks_to_codes(toks)


class _Features:
    """Tokens [N] to quantized features [T, C]."""

    def __init__(self, codec: Any, codes: _Codes):
        self.codec = codec
        self.codes = codes

    def __deepcopy__(self, memo: dict) -> "_Features":
        return self  # subsets share the model

    @torch.no_grad()
    def __call__(self, toks: torch.Tensor) -> torch.Tensor:
        device = self.codec.device
        codes = self.codes(toks)[None].to(device)
        return self.codec.codes_to_qfeats(codes)[0].float().cpu()


class _Table(Mapping):
    """Rows by id, read on access."""

    def __init__(self, rows: TokenRows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return (self.rows.value(row, "id") for row in range(len(self.rows)))

    def __getitem__(self, utt_id: str) -> dict[str, Any]:
        row = LazyRow(self.rows, self.rows.row_of(utt_id))
        return {key: row[key] for key in self.rows.keys}


class _Ids(Sequence):
    """Ids of items, read on access."""

    def __init__(self, dataset: TokenDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        dataset = self.dataset
        return dataset.rows.value(dataset.row_number(index), "id")


def _check_model(folder: str | Path, model: Any, fingerprint: str) -> None:
    if model.fingerprint != fingerprint:
        raise DataError(
            f"{folder}: its tokens were made by {model.name} (fingerprint "
            f"{model.fingerprint[:12]}), not by the model with fingerprint "
            f"{fingerprint[:12]}; use that model, or tokenise the audio again"
        )
