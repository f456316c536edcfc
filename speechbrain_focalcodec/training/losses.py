"""Losses between a reconstruction and its original.

In distributed training they are over the whole batch, as
:mod:`~speechbrain_focalcodec.training.distributed` has it. Waveforms and
features are zero beyond their lengths, and what lies there counts for nothing.
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
    """Log-mel spectrogram as HiFi-GAN's loss has it, masked.

    Magnitudes of centred frames, with Slaney's bands and norm; the logarithm
    of what is at least `floor`. Edges are reflected, those of each utterance
    at its own length: it has the frames that it would have alone.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the waveforms (Hz); the bands reach to its half.
    n_mels, n_fft, hop_length : int
        Bands, window and hop.
    floor : float
        Smallest magnitude.

    Example
    -------
    >>> lengths = torch.tensor([8000, 99])
    >>> CentredLogMel(16000)(torch.randn(2, 8000), lengths).shape
    torch.Size([2, 26, 80])
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
        """Number of frames for a number of samples.

        Arguments
        ---------
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        torch.Tensor
            Frames, int64 [B].
        """
        return 1 + lengths // self.hop_length

    def forward(self, sig: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the spectrogram.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        torch.Tensor
            [B, 1 + T // hop_length, n_mels].
        """
        side = self.n_fft // 2
        steps = torch.arange(-side, sig.shape[1] + side, device=sig.device)
        last = (lengths - 1).clamp(min=0)[:, None]
        steps = last - (last - steps.abs()).abs()
        sig = sig.float().gather(1, steps.clamp(min=0))
        # Reduced precision loses the quiet bands: see autocast.
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

    A mean over the bands of all valid frames: padding counts for nothing.

    Arguments
    ---------
    sample_rate : int
        Sample rate of both waveforms (Hz).
    n_mels, n_fft, hop_length : int
        Bands, window and hop, see :class:`CentredLogMel`. FocalCodec's recipes
        have the decoder's hop.
    floor : float
        Smallest magnitude.
    spectrogram : nn.Module, optional
        Another spectrogram than that of these options, such as
        :class:`~speechbrain_focalcodec.modules.mel.LogMel`.

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
        """Compute the loss.

        Arguments
        ---------
        estimate, target : torch.Tensor
            Waveforms [B, T].
        lengths : torch.Tensor, optional
            Samples, int64 [B]; all by default.

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
        self,
        estimate: torch.Tensor,
        target: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss.

        Arguments
        ---------
        estimate, target : torch.Tensor
            Waveforms [B, T].
        lengths : torch.Tensor, optional
            Samples, int64 [B]; all by default.

        Returns
        -------
        torch.Tensor
            Scalar, the mean over the resolutions.
        """
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
