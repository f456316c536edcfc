"""What a language model says of the next token: output layers and scores.

Classes are the tokens, and END after them.
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
        """Of one class each: int64 [M] to float32 [M]."""

    def log_probs(self) -> torch.Tensor:
        """Of all classes, float32 [M, codebook_size + 1]."""

    def likeliest(self) -> torch.Tensor:
        """The likeliest classes, int64 [M]."""


@dataclass
class SoftmaxScores:
    """Scores with a number for each class.

    Arguments
    ---------
    logits : torch.Tensor
        [M, codebook_size + 1].

    Example
    -------
    >>> SoftmaxScores(torch.tensor([[0.0, 9.0, 1.0]])).likeliest()
    tensor([1])
    """

    logits: torch.Tensor

    def log_prob(self, targets: torch.Tensor) -> torch.Tensor:
        """See :class:`TokenScores`."""
        return -F.cross_entropy(self.logits.float(), targets, reduction="none")

    def log_probs(self) -> torch.Tensor:
        """See :class:`TokenScores`."""
        return self.logits.float().log_softmax(-1)

    def likeliest(self) -> torch.Tensor:
        """See :class:`TokenScores`."""
        return self.logits.argmax(-1)


class TokenSoftmax(nn.Module):
    """The usual output layer: a vector for each class.

    Arguments
    ---------
    dim : int
        Size of the hidden vectors.
    codebook_size : int
        Number of different tokens.
    std : float
        Deviation of what the weights start as.

    Example
    -------
    >>> TokenSoftmax(4, 16)(torch.zeros(2, 4)).log_probs().shape
    torch.Size([2, 17])
    """

    def __init__(self, dim: int, codebook_size: int, std: float = 0.02):
        super().__init__()
        self.output = nn.Linear(dim, codebook_size + 1, bias=False)
        nn.init.normal_(self.output.weight, std=std)

    def forward(self, hidden: torch.Tensor) -> SoftmaxScores:
        """Score tokens.

        Arguments
        ---------
        hidden : torch.Tensor
            [M, dim].

        Returns
        -------
        SoftmaxScores
            The scores.
        """
        return SoftmaxScores(self.output(hidden))


@dataclass
class MixtureScores:
    """Scores by mixtures of products of bits.

    Arguments
    ---------
    quantizer : BinarySphericalQuantizer
        Knows the tokens' codes.
    weights : torch.Tensor
        Log-probabilities of the components, float32 [M, K].
    bits : torch.Tensor
        Log-odds of each bit, by component, float32 [M, K, d].
    end : torch.Tensor
        Log-odds of END, float32 [M].
    """

    quantizer: BinarySphericalQuantizer
    weights: torch.Tensor
    bits: torch.Tensor
    end: torch.Tensor

    def log_prob(self, targets: torch.Tensor) -> torch.Tensor:
        """See :class:`TokenScores`."""
        is_end = targets == self.quantizer.codebook_size
        signs = self._signs(targets.masked_fill(is_end, 0))
        each = F.logsigmoid(self.bits * signs[:, None]).sum(-1)
        token = (self.weights + each).logsumexp(-1) + F.logsigmoid(-self.end)
        return torch.where(is_end, F.logsigmoid(self.end), token)

    def log_probs(self) -> torch.Tensor:
        """See :class:`TokenScores`."""
        every = torch.arange(
            self.quantizer.codebook_size, device=self.end.device
        )
        token = (
            self._mixed(self._signs(every)) + F.logsigmoid(-self.end)[:, None]
        )
        return torch.cat([token, F.logsigmoid(self.end)[:, None]], -1)

    def likeliest(self) -> torch.Tensor:
        """The likeliest of END and the components' own likeliest tokens.

        A token that none of the components holds to be the likeliest may be
        likelier by all together; looking at all takes many times as long.
        """
        found = self._mixed(self.quantizer.lats_to_codes(self.bits).sign())
        best, component = found.max(-1)
        index = component[:, None, None].expand(-1, 1, self.bits.shape[2])
        toks = self.quantizer.lats_to_toks(self.bits.gather(1, index)[:, 0])
        is_end = F.logsigmoid(self.end) > best + F.logsigmoid(-self.end)
        return toks.masked_fill(is_end, self.quantizer.codebook_size)

    def _signs(self, toks: torch.Tensor) -> torch.Tensor:
        return self.quantizer.toks_to_codes(toks).sign()

    def _mixed(self, signs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [M, C] of codes [C, d] or [M, C, d], if not END."""
        # log sigmoid(s b) = s b / 2 - log(2 cosh(b / 2)), for signs s.
        halves = 0.5 * self.bits
        norms = (F.softplus(self.bits) - halves).sum(-1)
        each = halves @ signs.transpose(-1, -2)
        return (each + (self.weights - norms)[..., None]).logsumexp(-2)


class CodeMixture(nn.Module):
    """Probabilities of tokens by the bits of their codes.

    The codes' bits are independent within each of several components, and
    depend on each other by their mixture. What is learnt of a token so serves
    all that share bits with it, which a vector for each token has to be taught
    one by one; and weights and training grow with the number of bits alone.

    Arguments
    ---------
    dim : int
        Size of the hidden vectors.
    codebook_size : int
        Number of different tokens, a power of two.
    components : int
        Number of components; one makes all bits independent.

    Example
    -------
    >>> head = CodeMixture(4, 2**16, 8)
    >>> scores = head(torch.zeros(2, 4))
    >>> scores.log_prob(torch.tensor([5, 2**16])).shape  # 2**16 is END
    torch.Size([2])
    """

    def __init__(self, dim: int, codebook_size: int, components: int):
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be positive, got {components}")
        self.quantizer = BinarySphericalQuantizer(codebook_size)
        self.components = components
        self.output = nn.Linear(dim, 1 + components * (1 + self.quantizer.dim))
        with torch.no_grad():
            # END is as likely as any token.
            self.output.bias[0] = -math.log(codebook_size)

    def forward(self, hidden: torch.Tensor) -> MixtureScores:
        """Score tokens.

        Arguments
        ---------
        hidden : torch.Tensor
            [M, dim].

        Returns
        -------
        MixtureScores
            The scores.
        """
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
