"""Vocos decoder (Siuzdak, 2024): features to waveform by an inverse FFT."""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import StreamState, extend_left
from speechbrain_focalcodec.modules.convnext import ConvNeXtDecoder
from speechbrain_focalcodec.modules.masking import length_mask
from speechbrain_focalcodec.modules.precision import (
    ExactBuffers,
    at_least_float32,
)

__all__ = ["Vocos"]

MAX_MAGNITUDE = 100.0


class ISTFTHead(ExactBuffers):
    """Hidden frames to waveform: magnitudes and phases, inverse FFT.

    Offline, windowed frames are overlap-added and divided by the envelope of
    the squared windows of the utterance's own frames. Causal, the output is the
    last `hop_length` samples of each inverse FFT. `fade` cross-fades that many
    samples from the continuation of the frame before, which removes the seams
    between frames; 0, as in the published models, leaves them.
    """

    window: torch.Tensor
    rise: torch.Tensor

    def __init__(
        self,
        dim: int,
        n_fft: int,
        hop_length: int,
        causal: bool = False,
        fade: int = 0,
    ):
        super().__init__()
        if not 0 <= fade <= (min(hop_length, n_fft - hop_length) * causal):
            raise ValueError(
                f"fade must be from 0 to {hop_length} samples, the hop length, "
                f"and to n_fft - hop_length, in a causal Vocos; got {fade}"
            )
        self.n_fft = n_fft
        self.fade = fade
        self.hop_length = hop_length
        self.causal = causal
        self.proj = nn.Linear(dim, n_fft + 2)
        self.register_buffer(
            "window", torch.hann_window(n_fft), persistent=False
        )
        # Half a period of a raised cosine, without its ends 0 and 1.
        self.register_buffer(
            "rise",
            torch.hann_window(2 * fade + 2)[1 : fade + 1],
            persistent=False,
        )

    @property
    def reach(self) -> tuple[int, int]:
        """Frames to the left and to the right that overlap with a frame."""
        if self.causal:
            return int(self.fade > 0), 0
        side = -(-(self.n_fft - self.hop_length) // 2)
        return (-(-side // self.hop_length),) * 2

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Hidden frames [B, T, dim] to waveform [B, T * hop_length]."""
        # Phases and the FFT need full precision.
        with torch.autocast(x.device.type, enabled=False):
            spectrum = self.proj(x.to(self.proj.weight.dtype))
        magnitude, phase = at_least_float32(spectrum).chunk(2, dim=-1)
        magnitude = magnitude.exp().clamp(max=MAX_MAGNITUDE)
        frames = torch.fft.irfft(torch.polar(magnitude, phase), self.n_fft)
        if self.causal:
            return self.join(frames, state)
        frames = frames * self.window
        if lengths is None:
            valid = frames.new_ones(1, frames.shape[1], 1)
        else:
            mask = length_mask(lengths, frames.shape[1])[..., None]
            frames = frames.masked_fill(~mask, 0)
            valid = mask.to(frames)
        sig = self._overlap_add(frames)
        envelope = self._overlap_add(valid * self.window.square())
        # The envelope is zero only beyond an utterance's end.
        return sig / envelope.clamp(min=1e-11)

    def join(
        self, frames: torch.Tensor, state: StreamState | None = None
    ) -> torch.Tensor:
        """Causal inverse FFTs [B, T, n_fft] to waveform [B, T * hop_length]."""
        sig = frames[..., -self.hop_length :]
        if self.fade:
            # An inverse FFT is periodic: its first samples follow its last.
            next_sig = frames[..., : self.fade]
            before = extend_left(next_sig, 1, state, replicate=False)[:, :-1]
            start = sig[..., : self.fade]
            start = before + self.rise * (start - before)
            sig = torch.cat([start, sig[..., self.fade :]], dim=-1)
        return sig.flatten(1)

    def _overlap_add(self, frames: torch.Tensor) -> torch.Tensor:
        """Sum frames [B, T, n_fft] at their hops; crop (n_fft - hop) / 2.

        Frames are cut into pieces of one hop; piece k of all frames, shifted by
        k hops, is added at once.
        """
        batch, steps, _ = frames.shape
        pieces = -(-self.n_fft // self.hop_length)
        frames = F.pad(frames, (0, pieces * self.hop_length - self.n_fft))
        frames = frames.reshape(batch, steps, pieces, self.hop_length)
        total = frames.new_zeros(batch, steps + pieces - 1, self.hop_length)
        for k in range(pieces):
            total[:, k : k + steps] += frames[:, :, k]
        start = (self.n_fft - self.hop_length) // 2
        return total.flatten(1)[:, start : start + steps * self.hop_length]


class Vocos(ConvNeXtDecoder):
    """Features to waveform.

    Arguments
    ---------
    input_dim : int
        Feature dimension.
    num_layers, dim, ffn_dim, kernel_size, layerscale_init
        See :class:`~speechbrain_focalcodec.modules.convnext.ConvNeXtBackbone`.
    n_fft, hop_length : int
        FFT size and samples per frame.
    causal : bool
        Whether the model looks to the left only.
    fade : int
        Causal only: samples of the cross-fade, see :class:`ISTFTHead`.
    """

    def __init__(
        self,
        input_dim: int = 1024,
        num_layers: int = 8,
        dim: int = 512,
        ffn_dim: int = 1536,
        kernel_size: int = 7,
        layerscale_init: float | None = None,
        n_fft: int = 1024,
        hop_length: int = 320,
        causal: bool = False,
        fade: int = 0,
    ):
        super().__init__(
            ISTFTHead(dim, n_fft, hop_length, causal, fade),
            hop_length,
            causal,
            input_dim=input_dim,
            num_layers=num_layers,
            dim=dim,
            ffn_dim=ffn_dim,
            kernel_size=kernel_size,
            layerscale_init=layerscale_init,
        )
