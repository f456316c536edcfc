"""Augments training waveforms.

The hyperparameter ``augmentation`` is any callable that takes and returns
waveforms [B, T] and relative lengths [B]: SpeechBrain's ``Augmenter``, or a
module of this file.
"""

import torch

__all__ = ["RandomGain"]


class RandomGain(torch.nn.Module):
    """Applies a random gain to each utterance, without clipping.

    The gain is uniform in dB. It is lowered if the utterance's peak would
    exceed 1.

    Arguments
    ---------
    low, high : float
        Range of the gain in dB.

    Raises
    ------
    ValueError
        If `low` is above `high`.
    """

    def __init__(self, low: float = -12.0, high: float = 6.0):
        super().__init__()
        if not low <= high:
            raise ValueError(f"low ({low} dB) must not be above high ({high})")
        self.low = low
        self.high = high

    def forward(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return waveforms [B, T] with gain, and their relative lengths [B]."""
        # Drawn on the CPU: the same values on every device.
        chance = torch.rand(len(sig)).to(sig)
        gain = 10 ** ((self.low + (self.high - self.low) * chance) / 20)
        peak = sig.abs().amax(dim=1).clamp(min=1e-9)
        # Rounding must not lift the peak above 1 again.
        gain = torch.minimum(gain, (1 - 1e-6) / peak)
        return sig * gain[:, None], lengths
