"""Collects a source's items in compact Arrow batches."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from speechbrain_focalcodec.corpus.layout import COLUMNS
from speechbrain_focalcodec.corpus.sources import Item

__all__ = ["FIXED", "ItemBatches"]

# Columns of each table of items; those of a manifest follow.
FIXED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("speaker", pa.string()),
        pa.field("text", pa.string()),
        pa.field("start", pa.float64()),
        pa.field("stop", pa.float64()),
    ]
)
# Names that other columns cannot have, in any case: DuckDB reads "Text" as
# "text".
TAKEN = frozenset((*COLUMNS.names, *FIXED.names, ""))
PREFIX = "manifest_"

ROWS = 2**16  # of a batch

_EXACT = 2**53  # up to here every integer is a float64
_INT64 = 2**63


class ItemBatches:
    """The items of a source, in batches of Arrow.

    Paths below the base are relative to it. Values of other columns are kept
    as text until all items are added: only then their types are known.

    Arguments
    ---------
    base : str
        An absolute folder.

    Example
    -------
    >>> batches = ItemBatches("/data")
    >>> batches.add([Item("a", "/data/a.wav", extra={"age": 5})])
    >>> batches.add([Item("b", "/b.wav", extra={"age": 5.5})])
    >>> table = batches.take([1, 0])
    >>> table["path"].to_pylist(), table["age"].to_pylist()
    (['/b.wav', 'a.wav'], [5.5, 5.0])
    """

    def __init__(self, base: str) -> None:
        self.prefix = base.removesuffix("/") + "/"
        self.batches: list[pa.RecordBatch] = []
        self.starts: list[int] = []
        self.num_items = 0
        self._kinds: dict[str, set[str]] = {}  # in order of appearance
        self._rows: list[tuple] = []
        self._extra: dict[str, list[str | None]] = {}

    def add(self, items: Iterable[Item]) -> None:
        """Add items."""
        prefix, skip = self.prefix, len(self.prefix)
        for item in items:
            path = item.path
            if path.startswith(prefix) and path[skip : skip + 1] != "/":
                path = path[skip:]
            if item.extra:
                self._add_extra(item)
            self._rows.append((item.id, path, *item[2:6]))
            if len(self._rows) == ROWS:
                self._flush()
        self._flush()

    def _add_extra(self, item: Item) -> None:
        row = len(self._rows)
        for name, value in item.extra.items():
            kinds = self._kinds.setdefault(name, set())
            if value is None:
                continue
            column = self._extra.setdefault(name, [])
            column.extend([None] * (row - len(column)))
            kind, text = _as_text(value)
            kinds.add(kind)
            column.append(text)

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = list(zip(*self._rows, strict=True))
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(columns, FIXED, strict=True)
        ]
        names = list(FIXED.names)
        for name, column in self._extra.items():
            column.extend([None] * (len(self._rows) - len(column)))
            arrays.append(pa.array(column, pa.string()))
            names.append(_EXTRA + name)
        self.starts.append(self.num_items)
        self.batches.append(pa.RecordBatch.from_arrays(arrays, names))
        self.num_items += len(self._rows)
        self._rows = []
        self._extra = {}

    def ids(self) -> pa.ChunkedArray:
        """All ids, in the order they were added."""
        columns = [batch.column("id") for batch in self.batches]
        return pa.chunked_array(columns, pa.string())

    def schema(self) -> pa.Schema:
        """The columns of :meth:`take`."""
        return pa.schema([*FIXED, *self._extra_fields().values()])

    def _extra_fields(self) -> dict[str, pa.Field]:
        taken = set(TAKEN)
        fields = {}
        for name, kinds in self._kinds.items():
            free = name
            while free.casefold() in taken:
                free = PREFIX + free
            taken.add(free.casefold())
            fields[name] = pa.field(free, _type_of(kinds))
        return fields

    def take(self, rows: Sequence[int]) -> pa.Table:
        """Rows by number, in this order; each column is in one piece."""
        wanted = np.asarray(rows, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        which = np.searchsorted(self.starts, ascending, "right") - 1
        # Batch by batch: taking from all at once would join them in memory.
        parts = [
            self._part(index, ascending[which == index])
            for index in np.unique(which)
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        table = pa.Table.from_batches(parts, self.schema())
        return table.combine_chunks().take(pa.array(back)).combine_chunks()

    def _part(self, index: int, rows: np.ndarray) -> pa.RecordBatch:
        batch = self.batches[index]
        found = batch.take(pa.array(rows - self.starts[index]))
        arrays = [found.column(name) for name in FIXED.names]
        for name, field in self._extra_fields().items():
            if _EXTRA + name in batch.schema.names:
                arrays.append(found.column(_EXTRA + name).cast(field.type))
            else:
                arrays.append(pa.nulls(len(rows), field.type))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema())


_EXTRA = "extra:"  # prefix of extra columns


def _as_text(value: str | int | float | bool) -> tuple[str, str]:
    """Kind of a value, and its text."""
    if isinstance(value, bool):
        return "bool", "true" if value else "false"
    if isinstance(value, int):
        if -_EXACT <= value <= _EXACT:
            return "exact", str(value)
        return ("int" if -_INT64 <= value < _INT64 else "str"), str(value)
    if isinstance(value, float):
        return "float", repr(value)
    return "str", value


def _type_of(kinds: set[str]) -> pa.DataType:
    if not kinds:
        return pa.string()
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds <= {"exact", "int"}:
        return pa.int64()
    if kinds <= {"exact", "float"}:
        return pa.float64()
    return pa.string()
