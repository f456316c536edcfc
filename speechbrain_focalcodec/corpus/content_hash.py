"""Hashes the content of a table, independent of file and library."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["ContentHash", "seal", "unseal"]


class ContentHash:
    """SHA-256 over names, types and values of columns.

    It depends on the rows in their order, but not on how rows are grouped, the
    order of columns or the version of pyarrow. Each column is hashed by itself:
    which values are not null (a byte per row), then the values, little-endian;
    for text the lengths in bytes and the UTF-8. Columns are string, int64,
    float64 or bool.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.num_rows = 0
        self._streams = {
            field.name: [hashlib.sha256() for _ in range(3)] for field in schema
        }

    def update(self, table: pa.Table) -> None:
        """Add the rows of a table."""
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
    """Validity, then values; for text, its lengths and its bytes."""
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
    """Encode facts as JSON with their hash: the metadata of a Parquet file."""
    text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest().encode() + text


def unseal(sealed: bytes) -> dict[str, Any]:
    """Decode the output of :func:`seal`; ValueError if it is damaged."""
    text = sealed[64:]
    if hashlib.sha256(text).hexdigest().encode() != sealed[:64]:
        raise ValueError("its facts have changed")
    return json.loads(text)
