"""Checkpoints that are there whole or not at all."""

import logging
import os
import shutil
from pathlib import Path

from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from speechbrain.utils.distributed import if_main_process

__all__ = ["AtomicCheckpointer"]

# SpeechBrain looks for folders whose names start with CKPT.
UNFINISHED = "UNFINISHED-"


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, publishing a checkpoint by renaming it.

    SpeechBrain writes into the final folder, and its first file already marks
    it as valid: a run killed while saving cannot resume. Here all files are
    written and flushed to disk under another name first.

    Arguments
    ---------
    *args : tuple
        As for SpeechBrain's Checkpointer.
    **kwargs : dict
        As for SpeechBrain's Checkpointer.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path")
    >>> model = torch.nn.Linear(1, 1)
    >>> checkpointer = AtomicCheckpointer(folder, {"model": model})
    >>> saved = checkpointer.save_checkpoint()
    >>> sorted(path.name for path in saved.path.iterdir())
    ['CKPT.yaml', 'model.ckpt']
    """

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Save all recoverables.

        Arguments
        ---------
        meta : dict
            Kept with the checkpoint, to choose by.
        end_of_epoch : bool
            Whether an epoch has ended.
        name : str, optional
            Name of the checkpoint; the time by default.
        verbosity : int
            Level of the log message.

        Returns
        -------
        Checkpoint or None
            What was saved; None on other processes than the main one.
        """
        if meta is None:
            meta = {}
        if if_main_process():
            for left in self.checkpoints_dir.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left)
        saved = super().save_checkpoint(meta, end_of_epoch, name, verbosity)
        if saved is None:
            return None
        for file in saved.path.iterdir():
            _flush(file)
        _flush(saved.path)
        final = saved.path.with_name(saved.path.name.removeprefix(UNFINISHED))
        os.replace(saved.path, final)
        _flush(self.checkpoints_dir)
        files = {
            key: final / path.name for key, path in saved.paramfiles.items()
        }
        return Checkpoint(final, saved.meta, files)

    def _new_checkpoint_dirpath(self):
        return _unfinished(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name):
        return _unfinished(super()._custom_checkpoint_dirpath(name))


def _unfinished(folder: Path) -> Path:
    return folder.with_name(UNFINISHED + folder.name)


def _flush(path: Path) -> None:
    """Bring a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
