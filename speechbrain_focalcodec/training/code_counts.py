"""How often each code is used."""

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
from speechbrain_focalcodec.training.distributed import gather

__all__ = ["CodeCounts"]


class CodeCounts:
    """Counts codes, on all processes; checkpoints keep the counts.

    Arguments
    ---------
    codebook_size : int
        Number of codes.
    device : str or torch.device
        Where the codes are.

    Example
    -------
    >>> counts = CodeCounts(4)
    >>> counts.add(torch.tensor([[0, 1, 3]]), torch.tensor([2]))
    >>> counts.stats()
    {'code_usage': 0.5, 'code_entropy': 0.5}
    """

    def __init__(self, codebook_size: int, device: Any = "cpu"):
        self.counts = torch.zeros(
            codebook_size, dtype=torch.int64, device=device
        )

    def add(self, toks: torch.Tensor, lengths: torch.Tensor) -> None:
        """Count a batch in.

        Arguments
        ---------
        toks : torch.Tensor
            Codes, int64 [B, N].
        lengths : torch.Tensor
            How many of them count, int64 [B].
        """
        valid = toks[length_mask(lengths, toks.shape[1])]
        self.counts += torch.bincount(valid, minlength=len(self.counts))

    def clear(self) -> None:
        """Start anew."""
        self.counts.zero_()

    def stats(self) -> dict[str, float]:
        """Share of codes used, and entropy of their use (1 is uniform).

        Returns
        -------
        dict
            ``code_usage`` and ``code_entropy``, both in [0, 1]; empty when
            nothing was counted.
        """
        statistics = code_statistics(self._sum())
        statistics.pop("code_entropy_used", None)
        return statistics

    def _sum(self) -> torch.Tensor:
        """The counts of all processes."""
        return torch.stack(gather(self.counts.cpu())).sum(0)

    @mark_as_saver
    def _save(self, path):
        counts = self._sum()
        if if_main_process():
            torch.save(counts, path)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        del end_of_epoch
        # One process goes on with what all had.
        counts = torch.load(path, map_location="cpu", weights_only=True)
        self.counts.copy_(counts * int(if_main_process()))


# The decorator's default would have the main process save alone.
register_checkpoint_hooks(CodeCounts, save_on_main_only=False)
