"""The original speech, as a reference row in evaluations."""

import torch

from speechbrain_focalcodec.metrics.base import SAMPLE_RATE
from speechbrain_focalcodec.metrics.systems.base import System

__all__ = ["ORIGINAL", "Original"]

ORIGINAL = "original"

# Bits per sample.
BITS = 16


class Original(System):
    """Returns its input, at 16 bits per sample.

    Arguments
    ---------
    sample_rate : int
        Sample rate of input and output in Hz.
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
