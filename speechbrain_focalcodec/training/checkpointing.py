"""Checkpoints that are written atomically and verified when read."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_broadcast,
    if_main_process,
)

from speechbrain_focalcodec.errors import (
    CheckpointError,
    FocalCodecError,
    abridge,
)
from speechbrain_focalcodec.utils.files import sha256_of

__all__ = ["RANK", "AtomicCheckpointer"]

logger = logging.getLogger(__name__)

# Prefixes of folders while they are written or deleted. SpeechBrain only looks
# for names that start with CKPT.
UNFINISHED = "UNFINISHED-"
DELETED = "DELETED-"
# Key of a checkpoint's metadata; the lowest rank is the best.
RANK = "rank"
# Sizes and hashes of a checkpoint's files, to recognise damage.
MANIFEST = "MANIFEST.json"


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer with atomic writes and checksums.

    SpeechBrain writes into the final folder, and its first file marks the
    checkpoint as valid, so a run killed while saving cannot resume. Here a
    checkpoint is written and flushed to disk under another name, then renamed;
    deletion renames first.

    A manifest in each checkpoint holds sizes and hashes of its files. They are
    verified when a checkpoint is found or recovered. If one is damaged, a
    warning names the file and the next best checkpoint is used; therefore one
    more of the latest checkpoints is kept than requested. Damaged checkpoints
    are not deleted. Checkpoints without a manifest, from earlier versions, are
    not verified.

    The arguments are those of SpeechBrain's Checkpointer.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path")
    >>> model = torch.nn.Linear(1, 1)
    >>> checkpointer = AtomicCheckpointer(folder, {"model": model})
    >>> first, second = [checkpointer.save_checkpoint() for _ in range(2)]
    >>> _ = second.paramfiles["model"].write_bytes(b"damage")
    >>> checkpointer.recover_if_possible() == first
    True
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Problem of each damaged folder.
        self._damaged: dict[Path, str] = {}

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        if if_main_process():
            for prefix in (UNFINISHED, DELETED):
                for left in self.checkpoints_dir.glob(f"{prefix}*"):
                    shutil.rmtree(left)
        # Distinguishes a lost manifest from checkpoints without one.
        meta = {**(meta or {}), "manifest": True}
        saved = super().save_checkpoint(meta, end_of_epoch, name, verbosity)
        if saved is not None:
            saved = self._publish(saved)
        # Other processes list checkpoints next.
        ddp_barrier()
        return saved

    def _publish(self, saved: Checkpoint) -> Checkpoint:
        """Write the manifest, flush to disk and rename to the final folder."""
        _write_manifest(saved.path)
        for file in saved.path.iterdir():
            _flush(file)
        _flush(saved.path)
        final = saved.path.with_name(saved.path.name.removeprefix(UNFINISHED))
        if final.exists():
            # A custom name may be in use already.
            self._delete(final)
        os.replace(saved.path, final)
        _flush(self.checkpoints_dir)
        files = {
            key: final / path.name for key, path in saved.paramfiles.items()
        }
        return Checkpoint(final, saved.meta, files)

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        files, known = checkpoint.paramfiles, self.recoverables
        if "optimizer" in known and "optimizer_generator" in files:
            # Name in earlier versions, for decoders without discriminator.
            files["optimizer"] = files.pop("optimizer_generator")
        try:
            super().load_checkpoint(checkpoint)
        except FocalCodecError:
            raise
        except (RuntimeError, ValueError, LookupError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{checkpoint.path}: does not fit what is to be trained "
                f"({reason:.300}); give the options of the run that wrote it, "
                "or another output folder"
            ) from error

    def find_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        outcome: Checkpoint | CheckpointError | None = None
        if if_main_process():
            try:
                outcome = self._find_whole(*args, **kwargs)
            except CheckpointError as error:
                outcome = error
        outcome = ddp_broadcast(outcome)
        if isinstance(outcome, CheckpointError):
            raise outcome
        return outcome

    def _find_whole(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        for checkpoint in self.find_checkpoints(*args, **kwargs):
            # One without a manifest is from an earlier version.
            if "manifest" in checkpoint.meta:
                try:
                    _check_manifest(checkpoint.path)
                except CheckpointError as error:
                    self._note_damage(checkpoint.path, str(error))
                    continue
            return checkpoint
        damaged = [
            problem
            for folder, problem in sorted(self._damaged.items())
            if folder.exists()
        ]
        if damaged:
            raise CheckpointError(
                f"{self.checkpoints_dir}: no whole checkpoint is left; restore "
                "one from a copy, or start anew in another output folder "
                f"({abridge(damaged, '; ')})"
            )
        return None

    def list_checkpoints(self) -> list[Checkpoint]:
        folders = [
            path
            for path in sorted(self.checkpoints_dir.glob(f"{CKPT_PREFIX}*"))
            if path.is_dir()
        ]
        return [
            checkpoint
            for folder in folders
            if (checkpoint := self._read(folder)) is not None
        ]

    def _read(self, folder: Path) -> Checkpoint | None:
        """Checkpoint of a folder; None if it is damaged."""
        try:
            if (folder / MANIFEST).exists():
                _check_manifest(folder, [METAFNAME])
            [checkpoint] = self._construct_checkpoint_objects([folder])
            float(ckpt_recency(checkpoint))
            if "manifest" in checkpoint.meta:
                _check_manifest(folder, [])
        except CheckpointError as error:
            self._note_damage(folder, str(error))
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
            self._note_damage(folder, f"{folder / METAFNAME}: damaged")
        else:
            return checkpoint
        return None

    def _note_damage(self, folder: Path, problem: str) -> None:
        if self._damaged.get(folder) != problem:
            logger.warning("%s; not using this checkpoint", problem)
        self._damaged[folder] = problem

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Iterable[str] | None = None,
        max_keys: Iterable[str] | None = None,
        importance_keys: Iterable[Callable[[Checkpoint], Any]] = (
            ckpt_recency,
        ),
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        if num_to_keep < 0:
            raise ValueError(f"num_to_keep must be >= 0, got {num_to_keep}")
        ddp_barrier()
        if if_main_process():
            orders: list[dict[str, Any]] = [
                *({"min_key": key} for key in min_keys or ()),
                *({"max_key": key} for key in max_keys or ()),
                # SpeechBrain appends to its default list on each call.
                *(
                    {"importance_key": k}
                    for k in dict.fromkeys(importance_keys)
                ),
            ]

            def candidate(checkpoint: Checkpoint) -> bool:
                return checkpoint.path not in self._damaged and (
                    ckpt_predicate is None or ckpt_predicate(checkpoint)
                )

            found: set[Path] = set()
            kept: set[Path] = set()
            for order in orders:
                ranked = [
                    checkpoint.path
                    for checkpoint in self.find_checkpoints(
                        ckpt_predicate=candidate, **order
                    )
                ]
                by_recency = order.get("importance_key") is ckpt_recency
                spare = 1 if by_recency and num_to_keep else 0
                found.update(ranked)
                kept.update(ranked[: num_to_keep + spare])
            for folder in sorted(found - kept):
                self._delete(folder)
                logger.log(verbosity, "Deleted checkpoint in %s", folder)
        ddp_barrier()

    @staticmethod
    def _delete(folder: Path) -> None:
        """Rename, then delete, so that a kill leaves no half checkpoint."""
        doomed = folder.with_name(DELETED + folder.name)
        os.replace(folder, doomed)
        shutil.rmtree(doomed)

    def _new_checkpoint_dirpath(self):
        return _unfinished(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name):
        return _unfinished(super()._custom_checkpoint_dirpath(name))


def _unfinished(folder: Path) -> Path:
    return folder.with_name(UNFINISHED + folder.name)


def _flush(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_manifest(folder: Path) -> None:
    """Write sizes and SHA-256 of a folder's files into the folder."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    text = json.dumps({"files": files}, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _check_manifest(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise if files, all by default, differ from the manifest."""
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {
            name: (int(files[name]["size"]), str(files[name]["sha256"]))
            for name in (files if names is None else names)
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error!r}") from None
    for name, (size, digest) in expected.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                raise CheckpointError(
                    f"{path}: damaged: {path.stat().st_size} bytes long, "
                    f"not {size}"
                )
            if sha256_of(path) != digest:
                raise CheckpointError(
                    f"{path}: damaged: its content is not what was written"
                )
        except FileNotFoundError:
            raise CheckpointError(f"{path}: missing") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
