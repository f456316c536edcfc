"""Losses between a reconstruction and its original.

In distributed training they are means over the batch of all processes, see
:mod:`~speechbrain_focalcodec.training.distributed`. Waveforms and features are
zero in the padding, which does not count.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.distributed import (
    mean_over_processes,
    norm_over_processes,
)
from speechbrain_focalcodec.utils.extras import import_torchaudio

__all__ = [
    "CentredLogMel",
    "LogMelLoss",
    "MultiResolutionSTFTLoss",
    "masked_mse",
    "takes_lengths",
]


class CentredLogMel(nn.Module):
    """Log-mel spectrogram of HiFi-GAN's loss, with correct edges under padding.

    Magnitudes of centred frames with Slaney's bands and norm. Each utterance
    is reflected at its own end.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the waveforms (Hz); the bands reach to its half.
    n_mels, n_fft, hop_length : int
        Number of bands, FFT size and hop length.
    floor : float
        Minimum magnitude.
    """

    window: torch.Tensor
    filterbank: torch.Tensor

    def __init__(
        self,
        sample_rate: int,
        n_mels: int = 80,
        n_fft: int = 1024,
        hop_length: int = 320,
        floor: float = 1e-5,
    ):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.floor = floor
        window = torch.hann_window(n_fft)
        bands = import_torchaudio().functional.melscale_fbanks(
            n_fft // 2 + 1,
            0.0,
            sample_rate / 2,
            n_mels,
            sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filterbank", bands, persistent=False)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of frames, int64 [B], for numbers of samples."""
        return 1 + lengths // self.hop_length

    def forward(self, sig: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Spectrogram [B, 1 + T // hop_length, n_mels] of waveforms [B, T]."""
        side = self.n_fft // 2
        steps = torch.arange(-side, sig.shape[1] + side, device=sig.device)
        last = (lengths - 1).clamp(min=0)[:, None]
        steps = last - (last - steps.abs()).abs()
        sig = sig.float().gather(1, steps.clamp(min=0))
        # Reduced precision loses the quiet bands.
        with torch.autocast(sig.device.type, enabled=False):
            spectrum = torch.stft(
                sig,
                self.n_fft,
                self.hop_length,
                window=self.window,
                center=False,
                return_complex=True,
            )
            mel = spectrum.abs().transpose(1, 2) @ self.filterbank
            return mel.clamp(min=self.floor).log()


class LogMelLoss(nn.Module):
    """L1 distance of log-mel spectrograms (HiFi-GAN, section 2.3).

    Arguments
    ---------
    sample_rate : int
        Sample rate of both waveforms (Hz).
    n_mels, n_fft, hop_length : int
        Number of bands, FFT size and hop length. FocalCodec's recipes use the
        decoder's hop length.
    floor : float
        Minimum magnitude.
    spectrogram : nn.Module, optional
        Spectrogram to use instead, such as
        :class:`~speechbrain_focalcodec.modules.mel.LogMel`.
    """

    def __init__(
        self,
        sample_rate: int,
        n_mels: int = 80,
        n_fft: int = 1024,
        hop_length: int = 320,
        floor: float = 1e-5,
        spectrogram: nn.Module | None = None,
    ):
        super().__init__()
        self.mel: Any = spectrogram or CentredLogMel(
            sample_rate, n_mels, n_fft, hop_length, floor
        )

    def forward(
        self,
        estimate: torch.Tensor,
        target: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss over valid frames.

        Arguments
        ---------
        estimate, target : torch.Tensor
            Waveforms [B, T].
        lengths : torch.Tensor, optional
            Number of samples, int64 [B]; T by default.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        lengths = _all_if_none(lengths, target)
        x, y = self.mel(estimate, lengths), self.mel(target, lengths)
        return _mean_distance(x, y, self.mel.output_lengths(lengths))


class MultiResolutionSTFTLoss(nn.Module):
    """Spectral convergence and L1 of log magnitudes at several resolutions.

    Yamamoto et al., Parallel WaveGAN, section 2.2.

    Arguments
    ---------
    n_ffts : sequence of int
        FFT sizes; each hop length is a quarter of it.
    floor : float
        Minimum magnitude.
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
        self,
        estimate: torch.Tensor,
        target: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean over the resolutions; arguments as in `LogMelLoss.forward`."""
        total = estimate.new_zeros(())
        lengths = _all_if_none(lengths, target)
        for n_fft in self.n_ffts:
            x = self._magnitudes(estimate, n_fft)
            y = self._magnitudes(target, n_fft)
            frames = 1 + lengths // (n_fft // 4)
            error = norm_over_processes(zero_beyond(y - x, frames))
            norm = norm_over_processes(zero_beyond(y, frames))
            distance = _mean_distance(x.log(), y.log(), frames)
            total = total + error / norm + distance
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
        return power.clamp(min=self.floor**2).sqrt().transpose(1, 2)


def _all_if_none(
    lengths: torch.Tensor | None, sig: torch.Tensor
) -> torch.Tensor:
    if lengths is None:
        return torch.full((len(sig),), sig.shape[1], device=sig.device)
    return lengths


def _mean_distance(
    x: torch.Tensor, y: torch.Tensor, frames: torch.Tensor
) -> torch.Tensor:
    """Mean absolute difference of spectrograms [B, N, C] over valid frames."""
    error = zero_beyond((x - y).abs(), frames).sum()
    count = frames.sum()
    return mean_over_processes(error / (count * x.shape[-1]), count)


def masked_mse(
    estimate: torch.Tensor, target: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Mean squared error over valid frames.

    Features [B, T, C] are zero in the padding; lengths are frames, int64 [B].
    """
    error = (estimate.float() - target.float()).square().sum()
    frames = lengths.sum()
    return mean_over_processes(error / (frames * target.shape[-1]), frames)


def takes_lengths(loss: nn.Module) -> bool:
    """Whether a waveform loss has an argument ``lengths``."""
    return "lengths" in inspect.signature(loss.forward).parameters
