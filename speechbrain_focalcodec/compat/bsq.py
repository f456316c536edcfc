"""The published quantizer."""

import torch

from speechbrain_focalcodec.modules import bsq

__all__ = ["BinarySphericalQuantizer"]


class BinarySphericalQuantizer(bsq.BinarySphericalQuantizer):
    """Latents to tokens and codes, and back, see
    :class:`~speechbrain_focalcodec.modules.bsq.BinarySphericalQuantizer`.
    """

    def __init__(self, codebook_size: int = 4096) -> None:
        super().__init__(codebook_size)
        self.config = {"codebook_size": codebook_size}

    def codes_to_toks(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [..., d] to tokens, int64 [...]."""
        return self.lats_to_toks(codes)

    def forward(self, lats: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [..., d] to tokens, int64 [...], and codes [..., d]."""
        return self.lats_to_toks(lats), self.lats_to_codes(lats)
