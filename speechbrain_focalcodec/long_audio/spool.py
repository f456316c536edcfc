"""Stores features of long utterances between two passes."""

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import Any

import torch

from speechbrain_focalcodec.errors import FocalCodecError

__all__ = ["IN_MEMORY", "Spool"]

# Bytes; larger spools are files.
IN_MEMORY = 64 * 2**20


class Spool:
    """Frames of a batch of utterances: written in order, read anywhere.

    Small ones stay in memory. Others go to an unnamed file in the temporary
    folder (TMPDIR), which disappears when the spool is closed or the process
    ends.

    Arguments
    ---------
    lengths : sequence of int
        Number of frames of each utterance.

    Example
    -------
    >>> with Spool([2, 3]) as spool:
    ...     spool.append(torch.arange(5.0)[:, None])
    ...     spool.read(1, 1, 3)
    tensor([[3.],
            [4.]])
    """

    def __init__(self, lengths: Sequence[int]):
        self.lengths = list(lengths)
        self._starts = [0, *accumulate(self.lengths)]
        self._example: Any = None
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)

    def append(self, frames: torch.Tensor) -> None:
        """Write the next frames [T, ...], utterance by utterance.

        All have one type and device. Raises FocalCodecError if the temporary
        folder is full.
        """
        if self._example is None:
            self._example = frames[:0].clone()
        # As bytes: NumPy lacks some types.
        rows = frames.detach().cpu().contiguous().view(torch.uint8)
        with _storage():
            self._file.seek(0, os.SEEK_END)
            self._file.write(rows.numpy().data)

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """Frames [stop - start, ...] of an utterance; at least one.

        Raises FocalCodecError if the temporary folder is full.
        """
        shape, size = self._example.shape[1:], self._example.element_size()
        frame = math.prod(shape) * size
        with _storage():
            self._file.seek((self._starts[row] + start) * frame)
            data = bytearray(self._file.read((stop - start) * frame))
        frames = torch.frombuffer(data, dtype=self._example.dtype)
        return frames.view(-1, *shape).to(self._example.device)

    def close(self) -> None:
        """Free memory and disk."""
        # Data that cannot be flushed is not needed.
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()


@contextmanager
def _storage() -> Iterator[None]:
    """Convert errors of the disk to FocalCodecError."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "for temporary files"
        raise FocalCodecError(
            f"the folder {folder} cannot hold the features of this audio "
            f"({error}); make room there, or set TMPDIR to another folder"
        ) from error
