"""Losses between a reconstruction and its original.

In distributed training they are over the whole batch, as
:mod:`~speechbrain_focalcodec.training.distributed` has it. Spectral losses
take waveforms that are zero beyond their lengths: no error comes from there.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.training.distributed import (
    mean_over_processes,
    norm_over_processes,
)

__all__ = [
    "LogMelLoss",
    "MultiResolutionSTFTLoss",
    "masked_mse",
    "takes_lengths",
]


class LogMelLoss(nn.Module):
    """L1 distance of log-mel spectrograms (HiFi-GAN, section 2.3).

    Arguments
    ---------
    sample_rate : int
        Sample rate of both waveforms (Hz).
    n_mels, n_fft, hop_length : int
        Bands, window and hop.
    floor : float
        Added to magnitudes before the logarithm.

    Example
    -------
    >>> sig = torch.randn(2, 8000)
    >>> LogMelLoss(16000)(sig, sig).item()
    0.0
    """

    def __init__(
        self,
        sample_rate: int,
        n_mels: int = 80,
        n_fft: int = 1024,
        hop_length: int = 256,
        floor: float = 1e-5,
    ):
        super().__init__()
        self.mel = LogMel(
            sample_rate,
            n_mels,
            n_fft,
            hop_length,
            f_max=sample_rate / 2,
            floor=floor,
            mean=0.0,
            std=1.0,
        )

    def forward(
        self, estimate: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Compute the loss.

        Arguments
        ---------
        estimate, target : torch.Tensor
            Waveforms [B, T].

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        loss = F.l1_loss(self.mel(estimate), self.mel(target))
        return mean_over_processes(loss, estimate.numel())


class MultiResolutionSTFTLoss(nn.Module):
    """Spectral convergence and L1 of log magnitudes at several resolutions.

    Yamamoto et al., Parallel WaveGAN, section 2.2.

    Arguments
    ---------
    n_ffts : sequence of int
        Window sizes; the hop is a quarter of each.
    floor : float
        Smallest magnitude.

    Example
    -------
    >>> sig = torch.randn(2, 8000)
    >>> MultiResolutionSTFTLoss()(sig, sig).item()
    0.0
    """

    def __init__(
        self, n_ffts: Sequence[int] = (512, 1024, 2048), floor: float = 1e-4
    ):
        super().__init__()
        self.n_ffts = tuple(n_ffts)
        self.floor = floor
        for n_fft in self.n_ffts:
            self.register_buffer(
                f"window_{n_fft}", torch.hann_window(n_fft), persistent=False
            )

    def forward(
        self, estimate: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Compute the loss.

        Arguments
        ---------
        estimate, target : torch.Tensor
            Waveforms [B, T].

        Returns
        -------
        torch.Tensor
            Scalar, the mean over the resolutions.
        """
        total = estimate.new_zeros(())
        for n_fft in self.n_ffts:
            x = self._magnitudes(estimate, n_fft)
            y = self._magnitudes(target, n_fft)
            error = norm_over_processes(y - x)
            convergence = error / norm_over_processes(y)
            distance = F.l1_loss(x.log(), y.log())
            distance = mean_over_processes(distance, x.numel())
            total = total + convergence + distance
        return total / len(self.n_ffts)

    def _magnitudes(self, sig: torch.Tensor, n_fft: int) -> torch.Tensor:
        spectrum = torch.stft(
            sig.float(),
            n_fft,
            n_fft // 4,
            window=getattr(self, f"window_{n_fft}"),
            return_complex=True,
            pad_mode="constant",
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return power.clamp(min=self.floor**2).sqrt()


def masked_mse(
    estimate: torch.Tensor, target: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Mean squared error over valid frames.

    Arguments
    ---------
    estimate, target : torch.Tensor
        Features [B, T, C], zero beyond each length.
    lengths : torch.Tensor
        Frames, int64 [B].

    Returns
    -------
    torch.Tensor
        Scalar.

    Example
    -------
    >>> x = torch.tensor([[[1.0], [0.0]]])
    >>> masked_mse(x, torch.zeros(1, 2, 1), torch.tensor([1])).item()
    1.0
    """
    error = (estimate.float() - target.float()).square().sum()
    frames = lengths.sum()
    return mean_over_processes(error / (frames * target.shape[-1]), frames)


def takes_lengths(loss: nn.Module) -> bool:
    """Whether a loss of waveforms asks for their lengths.

    Arguments
    ---------
    loss : nn.Module
        Takes estimate and target [B, T].

    Returns
    -------
    bool
        Whether its ``forward`` has an argument ``lengths``.

    Example
    -------
    >>> takes_lengths(nn.L1Loss())
    False
    """
    return "lengths" in inspect.signature(loss.forward).parameters
