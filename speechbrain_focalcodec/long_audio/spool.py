"""Features of long utterances between two passes, in memory or on disk."""

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

# Bytes; what is larger goes to a file.
IN_MEMORY = 64 * 2**20


class Spool:
    """Frames of a batch of utterances: written in order, read anywhere.

    Small ones stay in memory. Others go to a file without a name in the
    temporary folder, which the variable TMPDIR names: it is gone when the
    spool is closed or the process ends.

    Arguments
    ---------
    lengths : sequence of int
        Frames of each utterance.

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
        """Write the next frames, utterance by utterance.

        Arguments
        ---------
        frames : torch.Tensor
            Frames [T, ...], all of one type on one device.

        Raises
        ------
        FocalCodecError
            If the temporary folder is full or cannot be written to.
        """
        if self._example is None:
            self._example = frames[:0].clone()
        # As bytes: NumPy does not know every type.
        rows = frames.detach().cpu().contiguous().view(torch.uint8)
        with _storage():
            self._file.seek(0, os.SEEK_END)
            self._file.write(rows.numpy().data)

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """Read some frames of one utterance.

        Arguments
        ---------
        row : int
            The utterance's place in the batch.
        start, stop : int
            Its frames; at least one.

        Returns
        -------
        torch.Tensor
            Frames [stop - start, ...], as they were written.

        Raises
        ------
        FocalCodecError
            If the temporary folder is full or cannot be written to.
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
        # What could not be written is not wanted any more.
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()


@contextmanager
def _storage() -> Iterator[None]:
    """Tell where there is no room, and what to do."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "for temporary files"
        raise FocalCodecError(
            f"the folder {folder} cannot hold the features of this audio "
            f"({error}); make room there, or set TMPDIR to another folder"
        ) from error
