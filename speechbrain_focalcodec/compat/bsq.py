"""The published quantizer."""

import torch

from speechbrain_focalcodec.modules import bsq

__all__ = ["BinarySphericalQuantizer"]


class BinarySphericalQuantizer(bsq.BinarySphericalQuantizer):
    """Latents to tokens and codes, and back, see
    :class:`~speechbrain_focalcodec.modules.bsq.BinarySphericalQuantizer`.

    Arguments
    ---------
    codebook_size : int
        Number of codes, a power of two.

    Example
    -------
    >>> toks, codes = BinarySphericalQuantizer(8)(torch.randn(2, 5, 3))
    >>> toks.shape, codes.shape
    (torch.Size([2, 5]), torch.Size([2, 5, 3]))
    """

    def __init__(self, codebook_size: int = 4096) -> None:
        super().__init__(codebook_size)
        self.config = {"codebook_size": codebook_size}

    def codes_to_toks(self, codes: torch.Tensor) -> torch.Tensor:
        """The same as `lats_to_toks`.

        Arguments
        ---------
        codes : torch.Tensor
            Codes [..., d].

        Returns
        -------
        torch.Tensor
            Tokens, int64 [...].
        """
        return self.lats_to_toks(codes)

    def forward(self, lats: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize.

        Arguments
        ---------
        lats : torch.Tensor
            Latents [..., d].

        Returns
        -------
        toks : torch.Tensor
            Tokens, int64 [...].
        codes : torch.Tensor
            Codes [..., d].
        """
        return self.lats_to_toks(lats), self.lats_to_codes(lats)
