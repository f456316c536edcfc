"""Writes and checks the shards of a token dataset.

A shard is published by one rename. Its footer has its facts, with failures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechbrain_focalcodec.corpus.content_hash import seal, unseal
from speechbrain_focalcodec.corpus.layout import COLUMNS, token_type
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = [
    "Failure",
    "ShardFacts",
    "is_whole",
    "read_facts",
    "shard_schema",
    "write_shard",
]

KEY = b"speechbrain_focalcodec.shard"

# Rows that a shuffling reader decodes at once.
_ROW_GROUP = 2048

Failure = tuple[str, str | None, str]  # id, path, reason


@dataclass(frozen=True)
class ShardFacts:
    """Facts in a shard's footer.

    Arguments
    ---------
    plan : str
        Digest of its plan.
    shard : int
        Number of the shard.
    rows : int
        Number of utterances.
    tokens : int
        Number of tokens.
    duration : float
        Seconds of audio.
    failures : list
        Id, path and reason of each item without a row.
    sizes : list of int
        Size in bytes of each row's audio file when it was read; empty in
        shards of earlier versions.
    """

    plan: str
    shard: int
    rows: int
    tokens: int
    duration: float
    failures: list[Failure] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


def shard_schema(codebook_size: int, extra: pa.Schema) -> pa.Schema:
    """Columns of a dataset's shards: those of each dataset, and `extra`."""
    items = pa.field("element", token_type(codebook_size), nullable=False)
    tokens = pa.field("tokens", pa.list_(items), nullable=False)
    schema = COLUMNS.set(COLUMNS.get_field_index("tokens"), tokens)
    return pa.schema([*schema, *extra])


def write_shard(
    path: str | Path,
    schema: pa.Schema,
    items: pa.Table,
    toks: Sequence[np.ndarray],
    lengths: Sequence[tuple[int, int]],
    facts: dict[str, Any],
) -> ShardFacts:
    """Write a shard, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file.
    schema : pyarrow.Schema
        Its columns.
    items : pyarrow.Table
        The items with tokens, in order, with all columns of the schema
        except tokens and lengths.
    toks : sequence of np.ndarray
        The tokens of each item.
    lengths : sequence of (int, int)
        Number of samples and sample rate of each item.
    facts : dict
        `plan`, `shard`, `failures` and `sizes` of :class:`ShardFacts`.

    Returns
    -------
    ShardFacts
        The facts in the footer.
    """
    element = schema.field("tokens").type.value_type
    offsets = np.cumsum([0, *map(len, toks)])
    joined = np.concatenate([np.empty(0, np.int64), *toks])
    tokens = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()),
        pa.array(joined.astype(element.to_pandas_dtype())),
        type=schema.field("tokens").type,
    )
    made: dict[str, Any] = {
        "tokens": tokens,
        "num_tokens": [len(row) for row in toks],
        "num_samples": [samples for samples, _ in lengths],
        "sample_rate": [rate for _, rate in lengths],
        "duration": [samples / rate for samples, rate in lengths],
    }
    columns = [
        made[name] if name in made else items[name] for name in schema.names
    ]
    table = pa.Table.from_arrays(
        [
            column
            if isinstance(column, pa.ChunkedArray | pa.Array)
            else pa.array(column, schema.field(i).type)
            for i, column in enumerate(columns)
        ],
        schema=schema,
    )
    result = ShardFacts(
        rows=len(toks),
        tokens=len(joined),
        duration=sum(made["duration"]),
        **facts,
    )
    with atomic_path(path) as temporary:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            # Delta encoding stores tokens at little more than their bits; a
            # dictionary would double the size of small shards.
            use_dictionary=[n for n in schema.names if n != "tokens"],
            column_encoding={"tokens.list.element": "DELTA_BINARY_PACKED"},
            write_page_checksum=True,
        ) as writer:
            writer.write_table(table, row_group_size=_ROW_GROUP)
            writer.add_key_value_metadata({KEY: seal(vars(result))})
    return result


def read_facts(path: str | Path, plan: str, shard: int) -> ShardFacts | None:
    """Read a shard's footer.

    None if the file is missing, damaged, or not this shard of this plan (its
    digest).
    """
    if not Path(path).is_file():
        return None
    try:
        with pq.ParquetFile(path) as file:
            facts = ShardFacts(**unseal(file.metadata.metadata[KEY]))
            whole = file.metadata.num_rows == facts.rows
        facts.failures[:] = [
            (item, where, reason) for item, where, reason in facts.failures
        ]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return None
    if not whole or (facts.plan, facts.shard) != (plan, shard):
        return None
    return facts


def is_whole(path: str | Path) -> bool:
    """Whether a shard's pages are as they were written.

    Arguments
    ---------
    path : str or Path
        The file; all of it is read.

    Returns
    -------
    bool
        False when it is missing too.

    Example
    -------
    >>> is_whole("nowhere.parquet")
    False
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches():
                batch.validate()
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True
