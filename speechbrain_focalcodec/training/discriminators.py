"""Discriminators that fit small decoders.

HiFi-GAN's have 70 million weights and cost two hundred times a mini decoder.
These look at the same things, periods of the waveform (Kong et al., 2020,
section 2.2) and spectrograms of several resolutions (Jang et al., UnivNet,
2021, section 2.2), with few channels.
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
# Waveforms below this level (RMS) are not made any louder.
_QUIET = 0.01


def _conv(*args, **kwargs) -> nn.Module:
    conv = nn.Conv2d(*args, **kwargs)
    # PyTorch's own would shrink the maps from layer to layer, and with them
    # the distances that the decoder learns from.
    nn.init.kaiming_normal_(conv.weight, _SLOPE)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return weight_norm(conv)


class _Stack(nn.Module):
    """Convolutions whose every output is a feature map; the last scores."""

    def __init__(self, layers: Sequence[nn.Module], score: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.score = score

    def forward(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Score [B, C, H, W]."""
        maps = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            maps.append(x)
        score = self.score(x)
        return score.flatten(1), [*maps, score]


class PeriodDiscriminator(nn.Module):
    """Looks at every p-th sample of a waveform.

    Arguments
    ---------
    period : int
        p.
    channels : sequence of int
        Of the layers, each of which takes a third of the steps.

    Example
    -------
    >>> score, maps = PeriodDiscriminator(3, [4, 8])(torch.randn(2, 1, 1000))
    >>> len(maps)
    3
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
        """Score waveforms.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, 1, T].

        Returns
        -------
        score : torch.Tensor
            [B, N], above zero for what seems real.
        maps : list of torch.Tensor
            Feature maps.
        """
        sig = F.pad(sig, (0, -sig.shape[-1] % self.period))
        return self.stack(sig.unflatten(-1, (-1, self.period)))


class SpectrogramDiscriminator(nn.Module):
    """Looks at a spectrogram, of compressed magnitudes.

    Arguments
    ---------
    n_fft : int
        FFT size; the hop is a quarter of it.
    channels : sequence of int
        Of the layers, each of which takes half of the frequencies.

    Example
    -------
    >>> discriminator = SpectrogramDiscriminator(256, [4, 8])
    >>> score, maps = discriminator(torch.randn(2, 1, 1000))
    >>> maps[0].shape
    torch.Size([2, 4, 16, 65])
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
        """Score waveforms.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, 1, T].

        Returns
        -------
        score : torch.Tensor
            [B, N], above zero for what seems real.
        maps : list of torch.Tensor
            Feature maps.
        """
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
            # About from -2 to 2 for speech of the level that it gets.
            image = (power + 1e-5).log10() / 2
        return self.stack(image.transpose(1, 2)[:, None])


class CompactDiscriminator(nn.Module):
    """Discriminators of periods and of spectrograms, as one.

    Gives what HiFi-GAN's does, for a mini decoder: lists of scores and of
    feature maps. All waveforms are brought to one level first.

    Arguments
    ---------
    periods : sequence of int
        Of the period discriminators.
    period_channels : sequence of int
        Their channels.
    n_ffts : sequence of int
        FFT sizes of the spectrogram discriminators.
    spectrogram_channels : sequence of int
        Their channels.

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
        """Score waveforms.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, 1, T].

        Returns
        -------
        scores : list of torch.Tensor
            One [B, N] for each discriminator.
        maps : list of list of torch.Tensor
            Feature maps of each.
        """
        # Speech is quiet, and small networks learn little from small inputs.
        with torch.autocast(sig.device.type, enabled=False):
            sig = sig.float()
            level = sig.detach().square().mean(-1, keepdim=True).sqrt()
            sig = sig / level.clamp(min=_QUIET)
        results = [discriminate(sig) for discriminate in self.discriminators]
        return [score for score, _ in results], [maps for _, maps in results]
