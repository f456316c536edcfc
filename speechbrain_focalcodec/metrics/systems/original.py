"""The original itself: the row that everything else is read against."""

import torch

from speechbrain_focalcodec.metrics.base import SAMPLE_RATE
from speechbrain_focalcodec.metrics.systems.base import System

__all__ = ["ORIGINAL", "Original"]

ORIGINAL = "original"

# Of a sample, as speech is commonly stored.
BITS = 16


class Original(System):
    """Gives back what it takes, at 16 bits a sample.

    Arguments
    ---------
    sample_rate : int
        Of input and output (Hz).

    Example
    -------
    >>> [output] = Original().resynthesize([torch.ones(16000)])
    >>> output.sig.sum().item(), output.bits
    (16000.0, 256000.0)
    """

    name = ORIGINAL
    fingerprint = ORIGINAL

    def __init__(self, sample_rate: int = SAMPLE_RATE):
        self.sample_rate_input = self.sample_rate_output = sample_rate

    def encode(self, sig: torch.Tensor) -> torch.Tensor:
        return sig

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes

    def bits(self, codes: torch.Tensor) -> float:
        return float(BITS * len(codes))
