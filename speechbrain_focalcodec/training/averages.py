"""Averages and code counts of an epoch, kept in checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process

from speechbrain_focalcodec.metrics.codes import code_statistics
from speechbrain_focalcodec.modules.masking import length_mask
from speechbrain_focalcodec.training.distributed import gather, num_processes

__all__ = ["Averages", "CodeCounts"]


class Averages:
    """Running means of named values over all processes.

    Example
    -------
    >>> averages = Averages()
    >>> averages.add("mse", 1.0)
    >>> averages.add("mse", 2.0)
    >>> averages.means()
    {'mse': 1.5}
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, float]] = {}
        self._pending: list[tuple[str, torch.Tensor | float]] = []

    def add(self, name: str, value: torch.Tensor | float) -> None:
        """Add a value without a sync; :meth:`read_pending` reads it."""
        self._pending.append((name, value))

    def read_pending(self) -> None:
        """Read the added values from the device."""
        for name, value in self._pending:
            total, count = self._values.get(name, (0.0, 0))
            self._values[name] = (total + float(value), count + 1)
        self._pending.clear()

    def __bool__(self) -> bool:
        """Whether this process has added values."""
        return bool(self._values or self._pending)

    def means(self) -> dict[str, float]:
        """Means by name. All processes of a distributed run must call this."""
        return {
            name: total / count for name, (total, count) in self._sums().items()
        }

    def _sums(self) -> dict[str, tuple[float, float]]:
        """Totals and counts by name over all processes."""
        self.read_pending()
        sums: dict[str, tuple[float, float]] = {}
        for values in gather(self._values):
            for name, (total, count) in values.items():
                other_total, other_count = sums.get(name, (0.0, 0))
                sums[name] = (other_total + total, other_count + count)
        return sums

    def clear(self) -> None:
        """Remove all values."""
        self._values.clear()
        self._pending.clear()

    @mark_as_saver
    def _save(self, path):
        sums = self._sums()
        if if_main_process():
            Path(path).write_text(json.dumps(sums), encoding="utf-8")

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        del end_of_epoch
        sums = json.loads(Path(path).read_text(encoding="utf-8"))
        # Each process gets an equal share.
        share = 1 / num_processes()
        self._values = {
            name: (total * share, count * share)
            for name, (total, count) in sums.items()
        }


# The decorator's default would have the main process save alone.
register_checkpoint_hooks(Averages, save_on_main_only=False)


class CodeCounts:
    """Counts how often each code is used, over all processes.

    Arguments
    ---------
    codebook_size : int
        Number of codes.
    device : str or torch.device
        Device of the counts.
    """

    def __init__(self, codebook_size: int, device: Any = "cpu"):
        self.counts = torch.zeros(
            codebook_size, dtype=torch.int64, device=device
        )

    def add(self, toks: torch.Tensor, lengths: torch.Tensor) -> None:
        """Count tokens, int64 [B, N], up to each length, int64 [B]."""
        valid = length_mask(lengths, toks.shape[1]).long()
        self.counts.scatter_add_(0, toks.flatten(), valid.flatten())

    def clear(self) -> None:
        """Set all counts to zero."""
        self.counts.zero_()

    def stats(self) -> dict[str, float]:
        """Share of used codes and normalised entropy of their use.

        Returns
        -------
        dict
            ``code_usage`` and ``code_entropy``, both in [0, 1]; empty if no
            token was counted.
        """
        statistics = code_statistics(self._sum())
        statistics.pop("code_entropy_used", None)
        return statistics

    def _sum(self) -> torch.Tensor:
        """Counts over all processes."""
        return torch.stack(gather(self.counts.cpu())).sum(0)

    @mark_as_saver
    def _save(self, path):
        counts = self._sum()
        if if_main_process():
            torch.save(counts, path)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        del end_of_epoch
        # The main process gets the counts of all processes.
        counts = torch.load(path, map_location="cpu", weights_only=True)
        self.counts.copy_(counts * int(if_main_process()))


register_checkpoint_hooks(CodeCounts, save_on_main_only=False)
