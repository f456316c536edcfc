"""Makes small token datasets, as `focalcodec tokenize` lays them out."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechbrain_focalcodec.corpus.layout import (
    COLUMNS,
    DatasetInfo,
    ModelInfo,
    ShardInfo,
    sha256_of,
    shard_name,
    token_type,
)

__all__ = ["FINGERPRINT", "make_tokens"]

FINGERPRINT = "ab" * 32


def make_tokens(
    folder: str | Path,
    shard_rows: tuple[int, ...] = (10, 7, 12),
    row_group: int = 4,
    codebook_size: int = 8192,
    token_rate: float = 50.0,
    longest: int = 40,
    fingerprint: str = FINGERPRINT,
    prefix: str = "utt",
) -> Path:
    """Write a dataset of random tokens with an extra column "chapter".

    Arguments
    ---------
    folder : str or Path
        Where to.
    shard_rows : tuple of int
        Rows of each shard.
    row_group : int
        Rows of a row group.
    codebook_size : int
        Number of different tokens.
    token_rate : float
        Tokens a second.
    longest : int
        Most tokens of a row.
    fingerprint : str
        Of the model.
    prefix : str
        What the ids begin with.

    Returns
    -------
    Path
        `folder`.

    Example
    -------
    >>> folder = make_tokens(getfixture("tmp_path") / "tokens")
    >>> (folder / "dataset.json").is_file()
    True
    """
    folder = Path(folder)
    (folder / "data").mkdir(parents=True)
    generator = np.random.default_rng(0)
    kind = token_type(codebook_size)
    schema = COLUMNS.set(1, COLUMNS.field(1).with_type(pa.list_(kind)))
    schema = schema.append(pa.field("chapter", pa.string()))
    shards, count, tokens, duration = [], 0, 0, 0.0
    for number, rows in enumerate(shard_rows):
        lines = []
        for _ in range(rows):
            size = int(generator.integers(1, longest + 1))
            lines.append(
                {
                    "id": f"{prefix}-{count:04d}",
                    "tokens": generator.integers(codebook_size, size=size),
                    "num_tokens": size,
                    "num_samples": int(size / token_rate * 16000),
                    "sample_rate": 16000,
                    "duration": size / token_rate,
                    "speaker": f"speaker{count % 3}",
                    "text": f"utterance {count}" if count % 4 else None,
                    "path": f"speech/{count}.flac",
                    "chapter": str(count // 5),
                }
            )
            count += 1
            duration += size / token_rate
        path = folder / shard_name(number, len(shard_rows))
        table = pa.Table.from_pylist(lines, schema=schema)
        pq.write_table(table, path, row_group_size=row_group)
        shard_tokens = sum(len(line["tokens"]) for line in lines)
        tokens += shard_tokens
        shards.append(
            ShardInfo(
                file=shard_name(number, len(shard_rows)),
                rows=rows,
                failures=0,
                tokens=shard_tokens,
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    info = DatasetInfo(
        format=1,
        kind="speechbrain_focalcodec tokens",
        model=ModelInfo(
            name="a_model",
            fingerprint=fingerprint,
            sample_rate_input=16000,
            sample_rate_output=16000,
            token_rate=token_rate,
            codebook_size=codebook_size,
            bitrate=token_rate * np.log2(codebook_size),
            causal=False,
        ),
        settings={},
        source={},
        items=count,
        rows=count,
        failures=0,
        tokens=tokens,
        duration=duration,
        token_type=str(kind),
        columns=schema.names,
        shards=shards,
    )
    (folder / "dataset.json").write_text(
        json.dumps(info.model_dump()), encoding="utf-8"
    )
    return folder
