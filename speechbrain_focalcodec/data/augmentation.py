"""Augmentation of training waveforms.

Anything that takes waveforms [B, T] and relative lengths [B] and gives both
can be the hyperparameter ``augmentation``: SpeechBrain's ``Augmenter``, or a
module of this file.
"""

import torch

__all__ = ["RandomGain"]


class RandomGain(torch.nn.Module):
    """Makes each utterance louder or softer, but never beyond full scale.

    The gain is drawn evenly in dB, by torch's generator. Where it would lift
    an utterance's peak above 1, it is lowered to what brings the peak to 1.

    Arguments
    ---------
    low, high : float
        The range of the gain in dB.

    Raises
    ------
    ValueError
        If `low` is above `high`.

    Example
    -------
    >>> gain = RandomGain(-20.0, 20.0)
    >>> sig, wav_lens = gain(0.5 * torch.ones(100, 8), torch.ones(100))
    >>> 0.05 <= sig.min() < 0.2 < sig.max() <= 1.0
    tensor(True)
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
        """Apply a gain to each utterance.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Relative lengths [B].

        Returns
        -------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            As they were.
        """
        # Drawn on the CPU: the same values on every device.
        chance = torch.rand(len(sig)).to(sig)
        gain = 10 ** ((self.low + (self.high - self.low) * chance) / 20)
        peak = sig.abs().amax(dim=1).clamp(min=1e-9)
        # Rounding must not lift the peak above 1 again.
        gain = torch.minimum(gain, (1 - 1e-6) / peak)
        return sig * gain[:, None], lengths
