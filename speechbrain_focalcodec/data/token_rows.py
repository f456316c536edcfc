"""Reads rows of a token dataset from Parquet on demand.

Pages are read with their checksums. These cover neither the footer nor the
gaps between pages: the SHA-256 of `dataset.json` does.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from speechbrain_focalcodec.corpus.layout import (
    COLUMNS,
    check_shards,
    read_info,
)
from speechbrain_focalcodec.errors import DataError

__all__ = ["CACHE_BYTES", "LazyRow", "TokenRows"]

CACHE_BYTES = 2**28
_LEAST_KEPT = 4  # columns kept even if they are larger than the cache
# Up to here the SHA-256 is always compared: a fraction of a second.
_ALWAYS_VERIFIED = 2**28  # bytes


class TokenRows:
    """Random access to the rows of a token dataset, row group by row group.

    Memory holds the lengths, once they are needed, and the columns of the row
    groups read last.

    Arguments
    ---------
    folder : str or Path
        The dataset.
    verify : bool
        Compare the shards' SHA-256, which reads all files. Up to 256 MiB it
        is always done.
    cache_bytes : int
        Memory per process for columns.

    Raises
    ------
    DataError
        If the dataset is incomplete or damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        verify: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.info = read_info(folder)
        self.cache_bytes = cache_bytes
        self.paths = list(check_shards(folder, self.info))
        self.keys = tuple(self.info.columns)
        if missing := set(COLUMNS.names) - set(self.keys):
            raise DataError(
                f"{folder}: lacks the columns {', '.join(sorted(missing))}; "
                "fetch the dataset again"
            )
        shards, groups, sizes = [], [], []
        for number, path in enumerate(self.paths):
            with _naming(path), pq.ParquetFile(path) as file:
                footer, names = file.metadata, file.schema_arrow.names
            if footer.num_rows != self.info.shards[number].rows:
                raise DataError(
                    f"{path}: has {footer.num_rows} rows, dataset.json says "
                    f"{self.info.shards[number].rows}; fetch the dataset again"
                )
            if names != self.info.columns:
                raise DataError(
                    f"{path}: has the columns {names}, dataset.json says "
                    f"{self.info.columns}; fetch the dataset again"
                )
            for group in range(footer.num_row_groups):
                shards.append(number)
                groups.append(group)
                sizes.append(footer.row_group(group).num_rows)
        if verify or sum(s.bytes for s in self.info.shards) <= _ALWAYS_VERIFIED:
            for _ in check_shards(folder, self.info, hashes=True):
                pass
        self._shards = np.array(shards, dtype=np.int32)
        self._groups = np.array(groups, dtype=np.int32)
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._lengths: np.ndarray | None = None
        self._bounds: list[tuple[str, str] | None] | None = None
        self._empty_cache()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict:
        # A worker that is spawned reads for itself.
        return self.__dict__ | {"_cache": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._empty_cache()

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, int32 [rows]."""
        if self._lengths is None:
            groups = range(len(self._shards))
            parts = [self._read(group, "num_tokens") for group in groups]
            self._lengths = np.concatenate([np.zeros(0, np.int32), *parts])
        return self._lengths

    def group_of(self, rows: np.ndarray) -> np.ndarray:
        """Row group (counted over all shards) of each row, int64 [n]."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def value(self, row: int, key: str) -> Any:
        """Value of a column: tokens as int64 [N], others as a Python object."""
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        place = row - int(self.starts[group])
        column = self._column(group, key)
        if key == "tokens":
            offsets, values = column
            toks = values[offsets[place] : offsets[place + 1]]
            return torch.from_numpy(toks.astype(np.int64))
        return column[place].as_py()

    def row_of(self, utt_id: str) -> int:
        """Row number of an id; KeyError if there is none."""
        if self._bounds is None:
            self._bounds = list(self._read_bounds())
        for group, bounds in enumerate(self._bounds):
            if bounds is None or bounds[0] <= utt_id <= bounds[1]:
                place = self._cached((group, "id", "place"))
                if place is None:
                    ids = self._column(group, "id").to_pylist()
                    place = {name: number for number, name in enumerate(ids)}
                    size = 200 * len(ids)
                    self._keep((group, "id", "place"), place, size)
                if utt_id in place:
                    return int(self.starts[group]) + place[utt_id]
        raise KeyError(utt_id)

    def _column(self, group: int, key: str) -> Any:
        """A column of a row group; for tokens, their offsets and values."""
        column = self._cached((group, key))
        if column is None:
            array = self._read(group, key)
            column = array
            if key == "tokens":
                column = self._offsets_and_values(group, array)
            self._keep((group, key), column, array.nbytes)
        return column

    def _read(self, group: int, key: str) -> pa.Array:
        path = self.paths[self._shards[group]]
        rows = self.starts[group + 1] - self.starts[group]
        # No threads and no handle that is kept: workers are forked.
        with (
            _naming(path),
            pq.ParquetFile(
                path,
                memory_map=True,
                pre_buffer=False,
                page_checksum_verification=True,
            ) as file,
        ):
            table = file.read_row_group(
                int(self._groups[group]), columns=[key], use_threads=False
            )
            table.validate(full=True)
            if len(table) != rows:
                raise pa.ArrowInvalid(f"{len(table)} rows instead of {rows}")
            return table[key].combine_chunks()

    def _offsets_and_values(
        self, group: int, array: pa.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        size = self.info.model.codebook_size
        values = array.values.to_numpy(zero_copy_only=False)
        if array.null_count or values.dtype.kind != "u":
            problem = "has rows without tokens"
        elif len(values) and values.max() >= size:
            problem = f"has tokens that are not within 0..{size - 1}"
        else:
            return array.offsets.to_numpy(), values
        path = self.paths[self._shards[group]]
        raise DataError(f"{path}: {problem}; make the dataset again")

    def _read_bounds(self) -> Iterator[tuple[str, str] | None]:
        """Yield first and last id of each row group, None if unknown."""
        for path in self.paths:
            with _naming(path), pq.ParquetFile(path) as file:
                footer = file.metadata
                column = self.info.columns.index("id")
                # "tokens" is nested: Parquet's columns are its leaves.
                for group in range(footer.num_row_groups):
                    chunk = footer.row_group(group).column(column)
                    stats = chunk.statistics
                    known = chunk.path_in_schema == "id" and stats is not None
                    if known and stats.has_min_max:
                        yield stats.min, stats.max
                    else:
                        yield None

    def _empty_cache(self) -> None:
        self._cache: OrderedDict = OrderedDict()
        self._cached_bytes = 0

    def _cached(self, key: tuple) -> Any:
        if key not in self._cache:
            return None
        self._cache.move_to_end(key)
        return self._cache[key][0]

    def _keep(self, key: tuple, value: Any, size: int) -> None:
        self._cache[key] = value, size
        self._cached_bytes += size
        while (
            self._cached_bytes > self.cache_bytes
            and len(self._cache) > _LEAST_KEPT
        ):
            _, (_, dropped) = self._cache.popitem(last=False)
            self._cached_bytes -= dropped


class LazyRow(dict):
    """A row that reads its values on access."""

    def __init__(self, rows: TokenRows, number: int):
        super().__init__()
        self._rows = rows
        self._number = number

    def __contains__(self, key: object) -> bool:
        return key in self._rows.keys or super().__contains__(key)

    def __missing__(self, key: str) -> Any:
        if key not in self._rows.keys:
            raise KeyError(key)
        self[key] = self._rows.value(self._number, key)
        return self[key]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors of Parquet."""
    try:
        yield
    # ValueError: names of columns that are not UTF-8.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); fetch the dataset again"
        ) from error
