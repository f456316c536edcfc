"""Output layers of a token language model and their scores.

The classes are the tokens, then END.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.bsq import BinarySphericalQuantizer

__all__ = [
    "CodeMixture",
    "MixtureScores",
    "SoftmaxScores",
    "TokenScores",
    "TokenSoftmax",
]


class TokenScores(Protocol):
    """Probabilities of M next tokens."""

    def log_prob(self, targets: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of targets, int64 [M] to float32 [M]."""

    def log_probs(self) -> torch.Tensor:
        """Log-probabilities of all classes, float32 [M, codebook_size + 1]."""

    def likeliest(self) -> torch.Tensor:
        """Likeliest classes, int64 [M]."""


@dataclass
class SoftmaxScores:
    """Scores from logits [M, codebook_size + 1]."""

    logits: torch.Tensor

    def log_prob(self, targets: torch.Tensor) -> torch.Tensor:
        return -F.cross_entropy(self.logits.float(), targets, reduction="none")

    def log_probs(self) -> torch.Tensor:
        return self.logits.float().log_softmax(-1)

    def likeliest(self) -> torch.Tensor:
        return self.logits.argmax(-1)


class TokenSoftmax(nn.Module):
    """Linear output layer; `std` is of the initial weights."""

    def __init__(self, dim: int, codebook_size: int, std: float = 0.02):
        super().__init__()
        self.output = nn.Linear(dim, codebook_size + 1, bias=False)
        nn.init.normal_(self.output.weight, std=std)

    def forward(self, hidden: torch.Tensor) -> SoftmaxScores:
        """Score hidden vectors [M, dim]."""
        return SoftmaxScores(self.output(hidden))


@dataclass
class MixtureScores:
    """Scores from mixtures of products of bits.

    `weights` are log-probabilities of the components, float32 [M, K], `bits`
    log-odds of the bits in each component [M, K, d], and `end` log-odds of END
    [M].
    """

    quantizer: BinarySphericalQuantizer
    weights: torch.Tensor
    bits: torch.Tensor
    end: torch.Tensor

    def log_prob(self, targets: torch.Tensor) -> torch.Tensor:
        is_end = targets == self.quantizer.codebook_size
        signs = self._signs(targets.masked_fill(is_end, 0))
        each = F.logsigmoid(self.bits * signs[:, None]).sum(-1)
        token = (self.weights + each).logsumexp(-1) + F.logsigmoid(-self.end)
        return torch.where(is_end, F.logsigmoid(self.end), token)

    def log_probs(self) -> torch.Tensor:
        every = torch.arange(
            self.quantizer.codebook_size, device=self.end.device
        )
        token = (
            self._mixed(self._signs(every)) + F.logsigmoid(-self.end)[:, None]
        )
        return torch.cat([token, F.logsigmoid(self.end)[:, None]], -1)

    def likeliest(self) -> torch.Tensor:
        """Likeliest of END and of the components' likeliest tokens.

        An approximation: a token that is likeliest in no component can be the
        likeliest in the mixture. Scoring all tokens is much slower.
        """
        scores = self._mixed(self.quantizer.lats_to_codes(self.bits).sign())
        best, component = scores.max(-1)
        index = component[:, None, None].expand(-1, 1, self.bits.shape[2])
        toks = self.quantizer.lats_to_toks(self.bits.gather(1, index)[:, 0])
        is_end = F.logsigmoid(self.end) > best + F.logsigmoid(-self.end)
        return toks.masked_fill(is_end, self.quantizer.codebook_size)

    def _signs(self, toks: torch.Tensor) -> torch.Tensor:
        return self.quantizer.toks_to_codes(toks).sign()

    def _mixed(self, signs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [M, C] of codes [C, d] or [M, C, d] (no END)."""
        # log sigmoid(s b) = s b / 2 - log(2 cosh(b / 2)), for signs s.
        halves = 0.5 * self.bits
        norms = (F.softplus(self.bits) - halves).sum(-1)
        each = halves @ signs.transpose(-1, -2)
        return (each + (self.weights - norms)[..., None]).logsumexp(-2)


class CodeMixture(nn.Module):
    """Output layer for the bits of the tokens' codes.

    Within each of several `components` of a mixture the bits are independent.
    Tokens that share bits share parameters, so rare tokens are learnt from
    others, and the size of the layer grows with the number of bits only.
    """

    def __init__(self, dim: int, codebook_size: int, components: int):
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be positive, got {components}")
        self.quantizer = BinarySphericalQuantizer(codebook_size)
        self.components = components
        self.output = nn.Linear(dim, 1 + components * (1 + self.quantizer.dim))
        with torch.no_grad():
            # Initially END is as likely as a token.
            self.output.bias[0] = -math.log(codebook_size)

    def forward(self, hidden: torch.Tensor) -> MixtureScores:
        """Score hidden vectors [M, dim]."""
        out = self.output(hidden).float()
        count = self.components
        end, weights, bits = out.split(
            [1, count, count * self.quantizer.dim], dim=-1
        )
        return MixtureScores(
            self.quantizer,
            weights.log_softmax(-1),
            bits.unflatten(-1, (count, -1)),
            end.squeeze(-1),
        )
