"""Small discriminators for small decoders.

HiFi-GAN's have 70 million weights and cost two hundred times a mini decoder.
These judge the same inputs with few channels: periods of the waveform (Kong et
al., 2020, section 2.2) and spectrograms of several resolutions (Jang et al.,
UnivNet, 2021, section 2.2).
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

__all__ = [
    "CompactDiscriminator",
    "PeriodDiscriminator",
    "SpectrogramDiscriminator",
]

_SLOPE = 0.1
# Quieter waveforms (RMS) are normalised as if they had this level.
_QUIET = 0.01


def _conv(*args, **kwargs) -> nn.Module:
    conv = nn.Conv2d(*args, **kwargs)
    # PyTorch's default would shrink the maps from layer to layer, and with them
    # the feature matching loss.
    nn.init.kaiming_normal_(conv.weight, _SLOPE)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return weight_norm(conv)


class _Stack(nn.Module):
    """Convolutions; all outputs are feature maps, the last is the score."""

    def __init__(self, layers: Sequence[nn.Module], score: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.score = score

    def forward(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Score [B, N] and feature maps of an input [B, C, H, W]."""
        maps = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            maps.append(x)
        score = self.score(x)
        return score.flatten(1), [*maps, score]


class PeriodDiscriminator(nn.Module):
    """Judges a waveform folded to [T / period, period].

    Arguments
    ---------
    period : int
        Period in samples.
    channels : sequence of int
        Channels of the layers; each has a stride of 3 along time.
    """

    def __init__(self, period: int, channels: Sequence[int]):
        super().__init__()
        self.period = period
        widths = [1, *channels]
        self.stack = _Stack(
            [
                _conv(inputs, outputs, (5, 1), (3, 1), (2, 0))
                for inputs, outputs in zip(widths, channels, strict=False)
            ],
            _conv(widths[-1], 1, (3, 1), 1, (1, 0)),
        )

    def forward(
        self, sig: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Score [B, N], above zero for real, and feature maps of [B, 1, T]."""
        sig = F.pad(sig, (0, -sig.shape[-1] % self.period))
        return self.stack(sig.unflatten(-1, (-1, self.period)))


class SpectrogramDiscriminator(nn.Module):
    """Judges a spectrogram of compressed magnitudes.

    Arguments
    ---------
    n_fft : int
        FFT size; the hop length is a quarter of it.
    channels : sequence of int
        Channels of the layers; each has a stride of 2 along frequency.
    """

    def __init__(self, n_fft: int, channels: Sequence[int]):
        super().__init__()
        self.n_fft = n_fft
        self.window: torch.Tensor
        self.register_buffer("window", torch.hann_window(n_fft), False)
        widths = [1, *channels]
        self.stack = _Stack(
            [
                _conv(inputs, outputs, (3, 9), (1, 2), (1, 4))
                for inputs, outputs in zip(widths, channels, strict=False)
            ],
            _conv(widths[-1], 1, (3, 3), 1, (1, 1)),
        )

    def forward(
        self, sig: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Score [B, N], above zero for real, and feature maps of [B, 1, T]."""
        with torch.autocast(sig.device.type, enabled=False):
            spectrum = torch.stft(
                sig[:, 0].float(),
                self.n_fft,
                self.n_fft // 4,
                window=self.window,
                pad_mode="constant",
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            # About -2 to 2 for speech of the normalised level.
            image = (power + 1e-5).log10() / 2
        return self.stack(image.transpose(1, 2)[:, None])


class CompactDiscriminator(nn.Module):
    """Period and spectrogram discriminators for a small decoder.

    Same outputs as SpeechBrain's ``HifiganDiscriminator``. Waveforms are
    normalised to the same level first.

    Arguments
    ---------
    periods : sequence of int
        Periods in samples, one discriminator each.
    period_channels : sequence of int
        Channels of the period discriminators.
    n_ffts : sequence of int
        FFT sizes, one spectrogram discriminator each.
    spectrogram_channels : sequence of int
        Channels of the spectrogram discriminators.

    Example
    -------
    >>> scores, maps = CompactDiscriminator()(torch.randn(2, 1, 8000))
    >>> len(scores), len(maps)
    (8, 8)
    """

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        period_channels: Sequence[int] = (16, 32, 64, 128, 128),
        n_ffts: Sequence[int] = (512, 1024, 2048),
        spectrogram_channels: Sequence[int] = (16, 16, 32, 32),
    ):
        super().__init__()
        self.discriminators = nn.ModuleList(
            [
                *(PeriodDiscriminator(p, period_channels) for p in periods),
                *(
                    SpectrogramDiscriminator(n_fft, spectrogram_channels)
                    for n_fft in n_ffts
                ),
            ]
        )

    def forward(
        self, sig: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Scores [B, N], above zero for real, and feature maps of [B, 1, T].

        One score and one list of maps for each discriminator.
        """
        # Small networks learn little from quiet inputs.
        with torch.autocast(sig.device.type, enabled=False):
            sig = sig.float()
            level = sig.detach().square().mean(-1, keepdim=True).sqrt()
            sig = sig / level.clamp(min=_QUIET)
        results = [discriminate(sig) for discriminate in self.discriminators]
        return [score for score, _ in results], [maps for _, maps in results]
