"""Hashes the content of a table, independently of its file format."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["ContentHash", "seal", "unseal"]


class ContentHash:
    """SHA-256 over names, types and values of columns.

    It depends on the rows and their order alone, not on row groups, the order
    of columns or the version of pyarrow. Each column is hashed by itself: one
    byte per row for missing values, then the values, little-endian; of text
    the lengths in bytes and the UTF-8.

    Arguments
    ---------
    schema : pyarrow.Schema
        The columns: string, int64, float64 or bool.

    Example
    -------
    >>> table = pa.table({"a": ["x", None, "y"]})
    >>> whole, parts = ContentHash(table.schema), ContentHash(table.schema)
    >>> whole.update(table)
    >>> for i in range(3):
    ...     parts.update(table.slice(i, 1))
    >>> whole.hexdigest() == parts.hexdigest()
    True
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.num_rows = 0
        self._streams = {
            field.name: [hashlib.sha256() for _ in range(3)] for field in schema
        }

    def update(self, table: pa.Table) -> None:
        """Add the rows of a table with the columns of the schema."""
        self.num_rows += table.num_rows
        for field in self.schema:
            for array in table.column(field.name).chunks:
                parts = _bytes_of(array)
                for stream, part in zip(
                    self._streams[field.name], parts, strict=False
                ):
                    stream.update(part)

    def hexdigest(self) -> str:
        """The hash of all rows so far, 64 digits."""
        columns = sorted(
            (
                field.name,
                str(field.type),
                [stream.hexdigest() for stream in self._streams[field.name]],
            )
            for field in self.schema
        )
        content = json.dumps([self.num_rows, columns])
        return hashlib.sha256(content.encode()).hexdigest()


def _bytes_of(array: pa.Array) -> list[Any]:
    """Bytes of the validity, the values, and text after its lengths."""
    valid = array.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False)
    if pa.types.is_string(array.type):
        array = array.fill_null("")
        lengths = pc.binary_length(array).to_numpy(zero_copy_only=False)
        _, offsets, text = array.buffers()
        bounds = np.frombuffer(
            offsets, np.int32, len(array) + 1, 4 * array.offset
        )
        part = b"" if text is None else text[bounds[0] : bounds[-1]]
        return [valid, lengths.astype("<i8"), part]
    if pa.types.is_boolean(array.type):
        values = array.fill_null(False).cast(pa.uint8())
        return [valid, values.to_numpy(zero_copy_only=False)]
    values = array.fill_null(0).to_numpy(zero_copy_only=False)
    return [valid, values.astype("<i8" if values.dtype == int else "<f8")]


def seal(facts: dict[str, Any]) -> bytes:
    """Facts as JSON after their hash, for the metadata of a Parquet file.

    Example
    -------
    >>> unseal(seal({"rows": 3}))
    {'rows': 3}
    """
    text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest().encode() + text


def unseal(sealed: bytes) -> dict[str, Any]:
    """Facts of :func:`seal`; a ValueError if they are damaged.

    Example
    -------
    >>> unseal(seal({"rows": 3}).replace(b"3", b"4"))
    Traceback (most recent call last):
    ...
    ValueError: its facts have changed
    """
    text = sealed[64:]
    if hashlib.sha256(text).hexdigest().encode() != sealed[:64]:
        raise ValueError("its facts have changed")
    return json.loads(text)
