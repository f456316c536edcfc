"""Binary spherical quantizer (Zhao et al., 2024; FocalCodec, section 3.2).

A latent on the unit sphere in d dimensions becomes the corner of the inscribed
hypercube in the same orthant: d bits, no stored codebook.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from speechbrain_focalcodec.modules.masking import (
    full_lengths,
    length_mask,
    zero_beyond,
)
from speechbrain_focalcodec.modules.part import Part
from speechbrain_focalcodec.modules.precision import at_least_float32

__all__ = ["BinarySphericalQuantizer", "to_sphere"]


class BinarySphericalQuantizer(Part):
    """Latents to tokens and codes, and back.

    Bit j is 1 if latent j is positive; the first bit is the most significant
    bit of the token. A code has values +-1/sqrt(d).

    Arguments
    ---------
    codebook_size : int
        Number of codes, a power of two; d is its logarithm.

    Example
    -------
    >>> quantizer = BinarySphericalQuantizer(8)
    >>> lats = torch.tensor([[[0.6, -0.8, 0.0], [-0.6, 0.0, 0.8]]])
    >>> toks = quantizer.lats_to_toks(lats)
    >>> toks
    tensor([[4, 1]])
    >>> quantizer.toks_to_codes(toks).sign()
    tensor([[[ 1., -1., -1.],
             [-1., -1.,  1.]]])
    """

    powers: torch.Tensor

    def __init__(self, codebook_size: int = 8192):
        super().__init__()
        self.codebook_size = codebook_size
        self.dim = codebook_size.bit_length() - 1
        if codebook_size < 2 or 2**self.dim != codebook_size:
            raise ValueError(
                f"codebook_size must be a power of two, got {codebook_size}"
            )
        self.register_buffer(
            "powers", 2 ** torch.arange(self.dim - 1, -1, -1), persistent=False
        )

    @property
    def codebook(self) -> torch.Tensor:
        """All codes [codebook_size, d], in the order of their tokens."""
        toks = torch.arange(self.codebook_size, device=self.powers.device)
        return self.toks_to_codes(toks)

    def lats_to_codes(self, lats: torch.Tensor) -> torch.Tensor:
        """Latents [..., d] to codes [..., d], each +-1/sqrt(d)."""
        signs = torch.where(lats > 0, 1.0, -1.0).to(lats)
        return signs * (1 / math.sqrt(self.dim))

    def lats_to_toks(self, lats: torch.Tensor) -> torch.Tensor:
        """Latents or codes [..., d] to tokens, int64 [...]."""
        return ((lats > 0) * self.powers).sum(-1)

    def toks_to_codes(self, toks: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [...], to codes [..., d], float32."""
        bits = (toks[..., None] & self.powers) > 0
        # A product, as in the published code; a quotient rounds differently.
        return torch.where(bits, 1.0, -1.0) * (1 / math.sqrt(self.dim))

    def straight_through(self, lats: torch.Tensor) -> torch.Tensor:
        """Codes [..., d] with the gradient of the latents [..., d]."""
        return lats + (self.lats_to_codes(lats) - lats).detach()

    def entropy_loss(
        self,
        lats: torch.Tensor,
        lengths: torch.Tensor | None = None,
        diversity_weight: float = 1.0,
        inverse_temperature: float = 100.0,
        total: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> torch.Tensor:
        """Mean entropy of the frames minus the entropy of the mean assignment.

        A frame is assigned to code c with probability proportional to exp(2 *
        inverse_temperature * <lat, c>). This distribution is a product over
        bits, so the entropy of a frame is a sum of binary entropies. The mean
        over frames is not a product; but each frame's distribution is the outer
        product of those of its first and last bits, and the mean of outer
        products is one matrix product. Both are exact and need memory for
        frames x 2^(d/2), not frames x 2^d.

        Arguments
        ---------
        lats : torch.Tensor
            Latents [B, N, d] on the unit sphere.
        lengths : torch.Tensor, optional
            Number of latents, int64 [B]; padding does not count.
        diversity_weight : float
            Weight of the second term.
        inverse_temperature : float
            Sharpness of the assignment (100 in the paper).
        total : callable
            Sums a tensor over the ranks of distributed training: the entropy of
            the mean assignment is not a mean over parts of a batch.

        Returns
        -------
        torch.Tensor
            The loss, a scalar, in nats.
        """
        if lengths is None:
            lengths = full_lengths(lats)
        lats = zero_beyond(lats, lengths)
        # Weights in place of a selection, for which a GPU would be waited.
        valid = length_mask(lengths, lats.shape[1]).reshape(-1, 1).float()
        with torch.autocast(lats.device.type, enabled=False):
            scale = 4 * inverse_temperature / math.sqrt(self.dim)
            logits = scale * lats.float().reshape(-1, self.dim)
            frames = total(valid.sum())
            frame = total((_binary_entropy(logits) * valid).sum()) / frames
            half = self.dim // 2
            first = _assignments(logits[:, :half]) * valid
            last = _assignments(logits[:, half:])
            mean = total(first.T @ last) / frames
            # No gradient through codes that no frame is near.
            mean_entropy = -(mean * mean.clamp(min=1e-12).log()).sum()
            return frame - diversity_weight * mean_entropy


def to_sphere(x: torch.Tensor) -> torch.Tensor:
    """Project latents [..., d] to the unit sphere, at least in float32."""
    return F.normalize(at_least_float32(x), dim=-1)


def _binary_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy (nats) of bits with these log odds, stable at both ends."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)


def _assignments(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities [M, 2^k] of all k-bit words from log odds [M, k]."""
    words = logits.new_ones(len(logits), 1)
    for ones in torch.sigmoid(logits).unbind(-1):
        pair = torch.stack([1 - ones, ones], dim=-1)
        words = (words[:, :, None] * pair[:, None]).flatten(1)
    return words
