"""Defines the layout of a token dataset: files, columns and dataset.json.

    OUT/
      dataset.json                          description; written last
      README.md                             dataset card, for load_dataset(OUT)
      data/tokens-00000-of-00042.parquet    a row per utterance, sorted by id
      failures.parquet                      id, path and reason
      work/                                 the plan of the run

A folder without `dataset.json` is a run that has not ended.
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
        # Of the audio file, at its own sample rate.
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
    """The model that made the tokens.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> ModelInfo.of(codec).codebook_size
    8192
    """

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
        """Description of a codec."""
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

    `settings` are the options of the run that can change tokens; `source` is
    the corpus, with a hash of the list of items.
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
    """Type of stored tokens: ``uint16`` if they fit, or ``uint32``."""
    return pa.uint16() if codebook_size <= 2**16 else pa.uint32()


def shard_name(index: int, count: int) -> str:
    """Path of shard `index` of `count`, relative to the dataset's folder.

    Example
    -------
    >>> shard_name(7, 42)
    'data/tokens-00007-of-00042.parquet'
    """
    return f"{DATA_NAME}/tokens-{index:05d}-of-{count:05d}.parquet"


def read_info(folder: str | Path) -> DatasetInfo:
    """Read a dataset's `dataset.json`.

    Arguments
    ---------
    folder : str or Path
        The dataset.

    Returns
    -------
    DatasetInfo
        The description.

    Raises
    ------
    DataError
        If there is no such dataset, its run has not ended, or the file is
        damaged or newer than this package.

    Example
    -------
    >>> read_info("nowhere")
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.DataError: nowhere: no such folder; ...
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
    """Check a dataset's shards, and yield their paths.

    Arguments
    ---------
    folder : str or Path
        The dataset.
    info : DatasetInfo
        Its description.
    hashes : bool
        Whether to compare SHA-256, which reads all files.

    Returns
    -------
    iterator of Path
        The shards, each after its check.

    Raises
    ------
    DataError
        If a shard is missing, or has another size or content.

    Example
    -------
    >>> shards = check_shards("my_tokens", read_info("my_tokens"))
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.DataError: my_tokens: no such folder; ...
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
