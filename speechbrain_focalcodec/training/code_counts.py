"""How often each code is used."""

import torch
from torch import nn

from speechbrain_focalcodec.modules.masking import length_mask

__all__ = ["CodeCounts"]


class CodeCounts(nn.Module):
    """Counts codes; a module, so that checkpoints keep the counts.

    Arguments
    ---------
    codebook_size : int
        Number of codes.

    Example
    -------
    >>> counts = CodeCounts(4)
    >>> counts.add(torch.tensor([[0, 1, 3]]), torch.tensor([2]))
    >>> counts.stats()
    {'code_usage': 0.5, 'code_entropy': 0.5}
    """

    def __init__(self, codebook_size: int):
        super().__init__()
        self.counts: torch.Tensor
        self.register_buffer(
            "counts", torch.zeros(codebook_size, dtype=torch.int64)
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
        total = self.counts.sum()
        if total == 0:
            return {}
        share = self.counts / total
        entropy = torch.special.entr(share).sum()
        size = torch.tensor(float(len(self.counts)))
        return {
            "code_usage": float((share > 0).float().mean()),
            "code_entropy": float(entropy.cpu() / size.log()),
        }
