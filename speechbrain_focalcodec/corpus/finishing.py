"""Ends a run: checks all shards and writes `dataset.json`."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from speechbrain_focalcodec.corpus.items import ItemTable
from speechbrain_focalcodec.corpus.layout import (
    DATA_NAME,
    FAILURES,
    FAILURES_NAME,
    INFO_NAME,
    WORK_NAME,
    DatasetInfo,
    ShardInfo,
    check_shards,
    read_info,
    shard_name,
)
from speechbrain_focalcodec.corpus.plan import Plan
from speechbrain_focalcodec.corpus.shards import (
    Failure,
    ShardFacts,
    is_whole,
    read_facts,
)
from speechbrain_focalcodec.errors import DataError, abridge
from speechbrain_focalcodec.utils.files import (
    atomic_path,
    atomic_write_text,
    sha256_of,
)

__all__ = [
    "finish",
    "finished",
    "published",
    "remove_leftovers",
    "undamaged",
    "write_failures",
]

CARD_NAME = "README.md"
# Temporary files that a killed process leaves.
_TEMPORARY = (
    f"{DATA_NAME}/.tokens-*.parquet",
    f"{WORK_NAME}/.items.*.parquet",
    f"{WORK_NAME}/items.*.parquet",
    f"{WORK_NAME}/.plan.*.json",
    ".dataset.*.json",
    ".failures.*.parquet",
    ".README.*.md",
)

_CARD = """---
configs:
- config_name: default
  data_files: "data/*.parquet"
tags:
- speech
- audio-tokens
---

# Speech tokens

Tokens of {rows} utterances ({hours:.2f} h), made by `{model}` with
speechbrain_focalcodec: {rate:g} tokens a second, {size} different ones.
`dataset.json` has the model's fingerprint and the shards' hashes;
`failures.parquet` what could not be read ({failures}).

    datasets.load_dataset("parquet", data_files="data/*.parquet")
"""


def published(out: str | Path, plan: Plan) -> dict[int, ShardFacts]:
    """Facts of the finished shards of a plan, by number."""
    digest = plan.digest()

    def look(index: int) -> ShardFacts | None:
        path = Path(out, shard_name(index, plan.shards))
        return read_facts(path, digest, index)

    with ThreadPoolExecutor() as pool:
        found = enumerate(pool.map(look, range(plan.shards)))
        return {index: facts for index, facts in found if facts is not None}


def undamaged(
    out: str | Path, plan: Plan, done: dict[int, ShardFacts]
) -> dict[int, ShardFacts]:
    """Those of the finished shards whose checksums and hashes are right."""
    try:
        hashes = {shard.file: shard.sha256 for shard in read_info(out).shards}
    except DataError:
        hashes = {}

    def right(index: int) -> bool:
        name = shard_name(index, plan.shards)
        if name in hashes and sha256_of(Path(out, name)) != hashes[name]:
            return False
        return is_whole(Path(out, name))

    with ThreadPoolExecutor() as pool:
        fine = pool.map(right, done)
        return {
            i: done[i] for i, yes in zip(list(done), fine, strict=True) if yes
        }


def remove_leftovers(out: str | Path) -> None:
    """Remove temporary files of killed processes."""
    for pattern in _TEMPORARY:
        for path in Path(out).glob(pattern):
            path.unlink(missing_ok=True)


def finished(out: str | Path, plan: Plan) -> DatasetInfo | None:
    """Description of a complete dataset; reads all shards.

    None if it is not complete, has another plan, or a shard is missing or has
    another hash.
    """
    if not all(Path(out, n).is_file() for n in (INFO_NAME, FAILURES_NAME)):
        return None
    try:
        info = read_info(out)
        for _ in check_shards(out, info, hashes=True):
            pass
        failures = pq.read_metadata(Path(out, FAILURES_NAME)).num_rows
    except (DataError, OSError, pa.ArrowException):
        return None
    whole = (
        failures == info.failures
        and Path(out, CARD_NAME).is_file()
        and (info.model, info.settings) == (plan.model, plan.settings)
        and info.source.get("digest") == plan.source["digest"]
        and len(info.shards) == plan.shards
    )
    return info if whole else None


def write_failures(out: str | Path, failures: Iterable[Failure]) -> Path:
    """Write `failures.parquet`, sorted by id; return its path."""
    path = Path(out, FAILURES_NAME)
    rows = [
        dict(zip(FAILURES.names, failure, strict=True))
        for failure in sorted(failures)
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=FAILURES), temporary)
    return path


def finish(out: str | Path, plan: Plan, items: ItemTable) -> DatasetInfo:
    """Write the index of a dataset; `dataset.json` comes last.

    A DataError if a shard is missing, damaged or has other items.
    """
    out = Path(out)
    facts = published(out, plan)
    missing = [str(i) for i in range(plan.shards) if i not in facts]
    if missing:
        raise DataError(
            f"{out}: the shards {abridge(missing)} are not done; run the same "
            "command again to make them"
        )
    paths = [shard_name(index, plan.shards) for index in range(plan.shards)]
    stray = {f"{DATA_NAME}/{p.name}" for p in out.glob(f"{DATA_NAME}/[!.]*")}
    if stray := stray - set(paths):
        raise DataError(
            f"{out}: {abridge(sorted(stray))} do not belong to this dataset; "
            "move them away and run the same command again"
        )
    # A hash of a damaged shard would hide the damage.
    whole = undamaged(out, plan, facts)
    if names := [paths[index] for index in facts if index not in whole]:
        raise DataError(
            f"{out}: {abridge(names)} damaged; run the same command again "
            "with --verify to make them again"
        )
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(sha256_of, (out / path for path in paths)))
    shards = [
        ShardInfo(
            file=path,
            rows=facts[index].rows,
            failures=len(facts[index].failures),
            tokens=facts[index].tokens,
            bytes=(out / path).stat().st_size,
            sha256=hashes[index],
        )
        for index, path in enumerate(paths)
    ]
    for index, shard in enumerate(shards):
        first = index * plan.items_per_shard
        expected = min(plan.items_per_shard, plan.items - first)
        if shard.rows + shard.failures != expected:
            raise DataError(
                f"{out / shard.file}: has {shard.rows + shard.failures} of "
                f"{expected} items; remove it and run the same command again"
            )
    write_failures(out, (f for fact in facts.values() for f in fact.failures))
    info = DatasetInfo(
        format=1,
        kind="speechbrain_focalcodec tokens",
        model=plan.model,
        settings=plan.settings,
        source={**plan.source, "items_per_shard": plan.items_per_shard},
        items=plan.items,
        rows=sum(shard.rows for shard in shards),
        failures=sum(shard.failures for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        # In the shards' order: a sum of floats depends on it.
        duration=sum(facts[index].duration for index in range(plan.shards)),
        token_type="uint16" if plan.model.codebook_size <= 2**16 else "uint32",
        columns=pq.read_schema(out / paths[0]).names,
        shards=shards,
    )
    atomic_write_text(
        out / CARD_NAME,
        _CARD.format(
            rows=info.rows,
            hours=info.duration / 3600,
            model=info.model.name,
            rate=info.model.token_rate,
            size=info.model.codebook_size,
            failures=info.failures,
        ),
    )
    remove_leftovers(out)
    text = json.dumps(info.model_dump(), indent=1)
    atomic_write_text(out / INFO_NAME, text + "\n")
    return info
