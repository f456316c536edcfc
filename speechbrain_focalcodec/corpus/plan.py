"""Plans a run: the items of each shard, the model and the settings.

The plan is written before the first shard. Each rank and each later run must
make the same plan.
"""

import filecmp
import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from speechbrain_focalcodec.corpus.items import (
    ItemTable,
    describe_changes,
    write_items,
)
from speechbrain_focalcodec.corpus.layout import (
    DATA_NAME,
    FAILURES_NAME,
    INFO_NAME,
    MAX_INFO_BYTES,
    WORK_NAME,
    ModelInfo,
    read_info,
)
from speechbrain_focalcodec.corpus.shards import read_facts
from speechbrain_focalcodec.corpus.sources import Source
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.utils.files import atomic_write_text, read_file

__all__ = ["Plan", "load_plan", "make_plan"]

PLAN_NAME = f"{WORK_NAME}/plan.json"
ITEMS_NAME = f"{WORK_NAME}/items.parquet"

# Other files in a run's folder, if its plan is lost.
_OURS = {WORK_NAME, DATA_NAME, FAILURES_NAME, "README.md"}
_SHARD = re.compile(r"tokens-(\d+)-of-(\d+)\.parquet")


class Plan(BaseModel):
    """Content of `work/plan.json`; `settings` can change tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    model: ModelInfo
    settings: dict[str, Any]
    source: dict[str, Any]
    items: int
    items_per_shard: int
    shards: int

    def digest(self) -> str:
        """SHA-256 over the plan without the corpus's path: it may move."""
        values = self.model_dump(mode="json")
        values["source"].pop("path")
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    out: str | Path,
    source: Source,
    model: ModelInfo,
    settings: dict[str, Any],
    items_per_shard: int | None = None,
) -> tuple[Plan, ItemTable]:
    """Plan a run, or check that the folder holds a run of the same plan.

    Arguments
    ---------
    out : str or Path
        The dataset's folder.
    source : Source
        The corpus.
    model : ModelInfo
        The model.
    settings : dict
        Options that can change tokens.
    items_per_shard : int, optional
        By default that of the earlier run, or a number that depends on the
        corpus's size.

    Returns
    -------
    plan : Plan
        The plan, on disk.
    items : ItemTable
        The items, opened.

    Raises
    ------
    DataError
        If the folder holds something else, or tokens of another model, corpus
        or other settings.
    """
    out = Path(out)
    before = _earlier_plan(out)
    if before is not None:
        _check_same(out, "another model", before.model, model)
        _check_same(out, "other settings", before.settings, settings)
        if items_per_shard is None:
            items_per_shard = before.items_per_shard
        elif items_per_shard != before.items_per_shard:
            raise DataError(
                f"{out}: has shards of {before.items_per_shard} items, not "
                f"{items_per_shard}; leave --shard-size out, or give another "
                "output folder"
            )
    # Written each time: a corpus may be moved with the same content.
    new = out / WORK_NAME / f"items.{secrets.token_hex(4)}.parquet"
    try:
        items = write_items(source, new, items_per_shard)
        if before is not None and before.source["digest"] != items.digest:
            raise DataError(_changed(out, source, items))
        plan = Plan(
            model=model,
            settings=settings,
            source={
                "kind": items.kind,
                "path": str(source.path),
                "digest": items.digest,
            },
            items=items.num_items,
            items_per_shard=items.items_per_shard,
            shards=items.num_shards,
        )
        if before is None:
            _check_shards(out, plan)
        _publish(new, out / ITEMS_NAME)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    text = json.dumps(plan.model_dump(), indent=1) + "\n"
    if before != plan or not (out / PLAN_NAME).is_file():
        atomic_write_text(out / PLAN_NAME, text)
    return plan, ItemTable(out / ITEMS_NAME)


def load_plan(out: str | Path) -> tuple[Plan, ItemTable]:
    """Read the plan of a dataset's folder.

    Arguments
    ---------
    out : str or Path
        The dataset's folder.

    Returns
    -------
    plan : Plan
        The plan.
    items : ItemTable
        The items.

    Raises
    ------
    DataError
        If there is none, or it is damaged.
    """
    plan = _read_plan(Path(out, PLAN_NAME))
    return plan, ItemTable(Path(out, ITEMS_NAME))


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.model_validate_json(read_file(path, MAX_INFO_BYTES))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); is the "
            "folder shared by all machines?"
        ) from error
    except ValidationError as error:
        raise DataError(
            f"{path}: is damaged; remove it and run the same command again: "
            "finished shards are kept"
        ) from error


def _earlier_plan(out: Path) -> Plan | None:
    """The plan of a folder; None if it is empty."""
    if (out / PLAN_NAME).exists():
        return _read_plan(out / PLAN_NAME)
    if (out / INFO_NAME).exists():
        # A complete dataset whose work folder was removed.
        info = read_info(out)
        names = {"kind", "path", "digest"}
        try:
            return Plan(
                model=info.model,
                settings=info.settings,
                source={name: info.source[name] for name in names},
                items=info.items,
                items_per_shard=info.source["items_per_shard"],
                shards=len(info.shards),
            )
        except (KeyError, ValidationError) as error:
            raise DataError(
                f"{out / INFO_NAME}: is damaged; remove it and run the same "
                "command again: finished shards are kept"
            ) from error
    if out.is_dir():
        # Without a plan: new, or a run's whose plan was damaged.
        found = {item.name for item in out.iterdir()}
        known = found <= {WORK_NAME} or (
            DATA_NAME in found
            and all(name in _OURS or name.startswith(".") for name in found)
            and all(
                name.startswith(".") or _SHARD.fullmatch(name)
                for name in os.listdir(out / DATA_NAME)
            )
        )
        if not known:
            raise DataError(
                f"{out}: holds other files; give a new or empty folder"
            )
    return None


def _check_shards(out: Path, plan: Plan) -> None:
    """A DataError if there are shards of another plan."""
    digest = plan.digest()
    for path in sorted((out / DATA_NAME).glob("tokens-*.parquet")):
        match = _SHARD.fullmatch(path.name)
        if not match or int(match[2]) != plan.shards:
            same = False
        else:
            same = read_facts(path, digest, int(match[1])) is not None
        if not same:
            raise DataError(
                f"{path}: is damaged or of another run (another model, "
                "corpus, setting or --shard-size), and the plan that tells "
                "is lost; run as before, or remove it, or give another folder"
            )


def _publish(new: Path, path: Path) -> None:
    """Move a file to its place, unless the same is there already."""
    try:
        if path.is_file() and filecmp.cmp(new, path, shallow=False):
            new.unlink()
        else:
            os.replace(new, path)
    except FileNotFoundError:
        # Another rank has ended the run and removed temporary files.
        if not path.is_file():
            raise


def _check_same(out: Path, other: str, before: Any, now: Any) -> None:
    if before == now:
        return
    if isinstance(now, ModelInfo):
        before, now = (
            f"{model.name}, fingerprint {model.fingerprint[:12]}"
            for model in (before, now)
        )
    raise DataError(
        f"{out}: holds tokens of {other} ({before}; now {now}); give another "
        "output folder, or what was given before"
    )


def _changed(out: Path, source: Source, items: ItemTable) -> str:
    try:
        what = describe_changes(ItemTable(out / ITEMS_NAME), items)
    except DataError:
        what = f"{items.num_items} items now"
    return (
        f"{source.path}: is not the corpus that {out} was begun with "
        f"({what}); give another output folder, or the corpus of before"
    )
