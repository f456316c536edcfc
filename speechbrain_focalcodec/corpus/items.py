"""Lists a corpus's items in one Parquet file, with one row group per shard.

Items are sorted by id, so that an item's shard does not depend on the order of
a folder's listing.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechbrain_focalcodec.corpus.content_hash import (
    ContentHash,
    seal,
    unseal,
)
from speechbrain_focalcodec.corpus.item_batches import FIXED, ItemBatches
from speechbrain_focalcodec.corpus.sources import Source
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["ItemTable", "describe_changes", "shard_size", "write_items"]

FORMAT = 1
KEY = b"speechbrain_focalcodec.items"

# Bounds of the automatic number of items of a shard, and of shards.
SHARD_SIZES = (8, 64, 8192)
SHARDS = (16, 256)


def shard_size(num_items: int) -> int:
    """Default number of items per shard.

    For about 256 shards of 64 to 8192 items; for 16 shards of 8 items or more
    of a small corpus, so that several processes have shards to make.

    Example
    -------
    >>> [shard_size(n) for n in (10, 500, 100_000, 10_000_000)]
    [8, 32, 391, 8192]
    """
    few, small, large = SHARD_SIZES
    least, most = (math.ceil(num_items / number) for number in SHARDS)
    return max(min(max(least, few), small), min(most, large))


def write_items(
    source: Source, path: str | Path, items_per_shard: int | None = None
) -> "ItemTable":
    """Write the items of a source, sorted by id, by one rename.

    Arguments
    ---------
    source : Source
        The corpus.
    path : str or Path
        The Parquet file to write.
    items_per_shard : int, optional
        Number of items of each shard but the last; by default
        :func:`shard_size`.

    Returns
    -------
    ItemTable
        The file, opened.

    Raises
    ------
    DataError
        If the source is empty or damaged, or two items have one id.

    Example
    -------
    >>> from speechbrain_focalcodec.corpus.sources import open_source
    >>> tmp = getfixture("tmp_path")
    >>> _ = (tmp / "files.txt").write_text("b.wav\\na.wav\\nc.wav\\n")
    >>> table = write_items(
    ...     open_source(tmp / "files.txt"), tmp / "items.parquet", 2
    ... )
    >>> table.num_items, table.num_shards
    (3, 2)
    >>> table.shard(0)["path"].to_pylist()
    ['a.wav', 'b.wav']
    """
    if items_per_shard is not None and items_per_shard < 1:
        raise ValueError(
            f"items_per_shard must be positive, not {items_per_shard}"
        )
    batches = ItemBatches(source.base)
    batches.add(source)
    size = items_per_shard or shard_size(batches.num_items)
    order = pc.sort_indices(batches.ids()).to_numpy()
    schema = batches.schema()
    content = ContentHash(schema)
    last: dict[str, Any] = {}
    segments = False
    shards = []
    with atomic_path(path) as temporary:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=["speaker"],
            write_statistics=["id"],
            write_page_checksum=True,
        ) as writer:
            for start in range(0, len(order), size):
                table = batches.take(order[start : start + size])
                _check_ids(table, last, source)
                last = table.slice(table.num_rows - 1).to_pylist()[0]
                content.update(table)
                for name in ("start", "stop"):
                    segments |= table[name].null_count < len(table)
                shards.append(_short_hash(table))
                writer.write_table(table, row_group_size=size)
            facts = {
                "format": FORMAT,
                "kind": source.kind,
                "base": source.base,
                "items": batches.num_items,
                "items_per_shard": size,
                "segments": segments,
                "digest": content.hexdigest(),
                "shards": shards,
            }
            writer.add_key_value_metadata({KEY: seal(facts)})
    return ItemTable(path)


def _short_hash(table: pa.Table) -> str:
    """Tells a damaged shard."""
    content = ContentHash(table.schema)
    content.update(table)
    return content.hexdigest()[:16]


def _check_ids(table: pa.Table, last: dict, source: Source) -> None:
    """Raise if an id of sorted rows repeats, or the one before them."""
    ids = table["id"].combine_chunks()
    same = pc.equal(ids[1:], ids[:-1])
    if last and last["id"] == ids[0].as_py():
        row, before = 0, last
    elif pc.any(same).as_py():
        row = pc.index(same, True).as_py() + 1
        before = table.slice(row - 1, 1).to_pylist()[0]
    else:
        return
    after = table.slice(row, 1).to_pylist()[0]
    raise DataError(
        f"{source.path}: two items have the id {after['id']!r}: "
        f"{before['path']} and {after['path']}; remove one, or give both "
        "ids of their own (a list of lines `id<TAB>path` can)"
    )


class ItemTable:
    """A file that :func:`write_items` has written.

    It can be sent to other processes, which open it anew.

    Arguments
    ---------
    path : str or Path
        The file.

    Attributes
    ----------
    num_items : int
        Number of items.
    num_shards : int
        Number of shards.
    items_per_shard : int
        Number of items of each shard but the last.
    kind : str
        The kind of the source.
    base : Path
        The folder that relative paths start from.
    has_segments : bool
        Whether an item is a part of its file.
    digest : str
        SHA-256 over the items in their order: ids, paths and all other
        columns, and not the base.

    Raises
    ------
    DataError
        If there is no such file, or it is damaged.

    Example
    -------
    >>> ItemTable("nowhere.parquet")
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.DataError: nowhere.parquet: no such file...
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: no such file; start the run anew")
        try:
            self._file = pq.ParquetFile(
                self.path, page_checksum_verification=True
            )
            metadata = self._file.metadata
            facts = unseal(metadata.metadata[KEY])
            if facts["format"] != FORMAT:
                raise DataError(
                    f"{path}: has format {facts['format']!r}, this version "
                    f"reads {FORMAT}; install a newer speechbrain_focalcodec"
                )
            self.num_items: int = facts["items"]
            self.items_per_shard: int = facts["items_per_shard"]
            self.kind: str = facts["kind"]
            self.base = Path(facts["base"])
            self.has_segments: bool = facts["segments"]
            self.digest: str = facts["digest"]
            self._shards: list[str] = facts["shards"]
            self.num_shards = math.ceil(self.num_items / self.items_per_shard)
            self.schema = self._file.schema_arrow.remove_metadata()
            whole = (
                metadata.num_rows == self.num_items
                and metadata.num_row_groups == self.num_shards
                and self.schema.names[: len(FIXED)] == FIXED.names
            )
        except DataError:
            raise
        except (pa.ArrowException, ValueError, TypeError, LookupError) as e:
            raise self._damaged(e) from e
        except (OSError, ArithmeticError) as error:
            raise self._damaged(error) from error
        if not whole:
            raise self._damaged("its parts do not fit together")

    def __reduce__(self) -> tuple:
        return ItemTable, (self.path,)

    @property
    def extra_schema(self) -> pa.Schema:
        """The columns that are not in every table of items."""
        return pa.schema(list(self.schema)[len(FIXED) :])

    def shard(self, index: int) -> pa.Table:
        """Read the items of one shard; a DataError if the file is damaged.

        Columns are id, path, speaker, text, start, stop and the extra ones.
        """
        if not 0 <= index < self.num_shards:
            raise IndexError(
                f"there are shards 0 to {self.num_shards - 1}, not {index}"
            )
        try:
            table = self._file.read_row_group(index)
            table.validate(full=True)
            same = _short_hash(table) == self._shards[index]
        except (pa.ArrowException, LookupError, ValueError, OSError) as error:
            raise self._damaged(error) from error
        if not same:
            raise self._damaged(f"shard {index} has changed")
        return table.replace_schema_metadata(None)

    def open_path(self, path: str) -> Path:
        """Path to open of an item: absolute, or relative to the base."""
        return self.base / path

    def _damaged(self, reason: object) -> DataError:
        text = " ".join(str(reason).split())
        return DataError(
            f"{self.path}: is damaged ({text[:200]}); remove it and run the "
            "same command again"
        )


def describe_changes(old: ItemTable, new: ItemTable) -> str:
    """Describe how two tables of items differ; empty if they do not.

    Example
    -------
    >>> from speechbrain_focalcodec.corpus.sources import open_source
    >>> tmp = getfixture("tmp_path")
    >>> tables = []
    >>> for text in ("a.wav\\nb.wav", "b.flac\\nc.wav\\nd.wav"):
    ...     _ = (tmp / "files.txt").write_text(text)
    ...     tables.append(
    ...         write_items(
    ...             open_source(tmp / "files.txt"), tmp / f"{len(text)}"
    ...         )
    ...     )
    >>> describe_changes(*tables)
    "2 added, 1 removed, 1 changed; first: 'a' (removed)"
    """
    if old.digest == new.digest:
        return ""
    counts = dict.fromkeys(("added", "removed", "changed"), 0)
    first = ""
    names = sorted({*old.schema.names, *new.schema.names} - {"id"})
    for item_id, what in _changes(_rows(old, names), _rows(new, names)):
        counts[what] += 1
        first = first or f"; first: {item_id!r} ({what})"
    if not first:
        return "other columns, or columns of other types"
    return ", ".join(f"{n} {what}" for what, n in counts.items()) + first


def _rows(table: ItemTable, names: list[str]) -> Iterator[tuple[str, tuple]]:
    """Yield ids and the values of these columns."""
    for index in range(table.num_shards):
        shard = table.shard(index)
        columns = [
            shard[name].to_pylist()
            if name in shard.column_names
            else [None] * shard.num_rows
            for name in names
        ]
        yield from zip(
            shard["id"].to_pylist(), zip(*columns, strict=True), strict=True
        )


def _changes(
    old: Iterator[tuple[str, tuple]], new: Iterator[tuple[str, tuple]]
) -> Iterator[tuple[str, str]]:
    """Yield changed ids and the kind of change, of two sorted tables."""
    before, after = next(old, None), next(new, None)
    while before or after:
        if before and (after is None or before[0] < after[0]):
            yield before[0], "removed"
            before = next(old, None)
        elif after and (before is None or after[0] < before[0]):
            yield after[0], "added"
            after = next(new, None)
        elif before and after:
            # NaN is not equal to itself.
            if before[1] != after[1] and repr(before[1]) != repr(after[1]):
                yield after[0], "changed"
            before, after = next(old, None), next(new, None)
