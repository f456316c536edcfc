"""The layout of a token dataset: its files, its columns and dataset.json.

    OUT/
      dataset.json                          description; written last
      README.md                             dataset card, for load_dataset(OUT)
      data/tokens-00000-of-00042.parquet    one row per utterance, by id
      failures.parquet                      id, path and reason
      work/                                 the plan of the run

A folder without `dataset.json` is an unfinished run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.utils.files import sha256_of

__all__ = [
    "COLUMNS",
    "FAILURES",
    "INFO_NAME",
    "DatasetInfo",
    "ModelInfo",
    "ShardInfo",
    "check_shards",
    "read_info",
    "shard_name",
    "token_type",
]

FORMAT = 1
INFO_NAME = "dataset.json"
FAILURES_NAME = "failures.parquet"
WORK_NAME = "work"
DATA_NAME = "data"

MAX_INFO_BYTES = 2**26

# The columns of every dataset, in order; those of a manifest follow.
COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.uint16()), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        # Of the audio as it was read: its own rate, its own samples.
        pa.field("num_samples", pa.int64(), nullable=False),
        pa.field("sample_rate", pa.int32(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),
        pa.field("speaker", pa.string()),
        pa.field("text", pa.string()),
        pa.field("path", pa.string()),
    ]
)
FAILURES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelInfo(_Closed):
    """The model that made the tokens."""

    name: str
    fingerprint: Hash
    sample_rate_input: int
    sample_rate_output: int
    token_rate: float
    codebook_size: Annotated[int, Field(ge=2, le=2**32)]
    bitrate: float
    causal: bool

    @classmethod
    def of(cls, codec: Any) -> "ModelInfo":
        """Describe a codec."""
        return cls(**{name: getattr(codec, name) for name in cls.model_fields})


class ShardInfo(_Closed):
    """One Parquet file."""

    file: Annotated[
        str, Field(pattern=rf"^{DATA_NAME}/tokens-\d+-of-\d+\.parquet$")
    ]
    rows: Count
    failures: Count
    tokens: Count
    bytes: Count
    sha256: Hash


class DatasetInfo(_Closed):
    """Content of `dataset.json`.

    `settings` are the options of the run that can change tokens; `source`
    describes the audio, with a hash over the list of items.
    """

    format: Literal[1]
    kind: Literal["speechbrain_focalcodec tokens"]
    model: ModelInfo
    settings: dict[str, Any]
    source: dict[str, Any]
    items: Count
    rows: Count
    failures: Count
    tokens: Count
    duration: float  # seconds of all rows
    token_type: Literal["uint16", "uint32"]
    columns: list[str]
    shards: list[ShardInfo]


def token_type(codebook_size: int) -> pa.DataType:
    """The type of stored tokens: uint16 if they fit, else uint32."""
    return pa.uint16() if codebook_size <= 2**16 else pa.uint32()


def shard_name(index: int, count: int) -> str:
    """Path of a shard below the dataset's folder."""
    return f"{DATA_NAME}/tokens-{index:05d}-of-{count:05d}.parquet"


def read_info(folder: str | Path) -> DatasetInfo:
    """Read and check a dataset's `dataset.json`.

    Raises
    ------
    DataError
        If there is no such dataset, its run is unfinished, or the file is
        damaged or newer than this package.
    """
    folder = Path(folder)
    path = folder / INFO_NAME
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; make a token dataset with "
            "`focalcodec tokenize`"
        )
    if not path.is_file():
        if (folder / WORK_NAME).is_dir():
            raise DataError(
                f"{folder}: is not complete; run the same `focalcodec "
                "tokenize` again to finish it"
            )
        raise DataError(
            f"{folder}: is not a token dataset (it has no {INFO_NAME}); make "
            "one with `focalcodec tokenize`"
        )
    if path.stat().st_size > MAX_INFO_BYTES:
        raise DataError(f"{path}: is too large to be one; fetch it again")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
            raise DataError(
                f"{path}: has format {values['format']!r}, this version reads "
                f"{FORMAT}; install a newer speechbrain_focalcodec"
            )
        return DatasetInfo.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path}: is damaged ({where}: {first['msg']}); fetch it again"
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: is damaged ({error}); fetch it again"
        ) from error


def check_shards(
    folder: str | Path, info: DatasetInfo, hashes: bool = False
) -> Iterator[Path]:
    """Yield the paths of a dataset's shards, each after it was checked.

    Arguments
    ---------
    folder : str or Path
        The dataset.
    info : DatasetInfo
        Its description.
    hashes : bool
        Whether to compare SHA-256 too, which reads all files.

    Raises
    ------
    DataError
        If a shard is missing or differs.
    """
    for shard in info.shards:
        path = Path(folder, shard.file)
        if not path.is_file():
            raise DataError(f"{path}: is missing; fetch the dataset again")
        fine = path.stat().st_size == shard.bytes
        if fine and hashes:
            fine = sha256_of(path) == shard.sha256
        if not fine:
            raise DataError(
                f"{path}: is not the file that {INFO_NAME} describes; fetch "
                "it again, or remove it and run `focalcodec tokenize` again"
            )
        yield path
