"""WavLM's strided convolutions: waveform to frames at 50 Hz."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import (
    StreamState,
    extend_left,
    scope,
)
from speechbrain_focalcodec.modules.derived import fast_path
from speechbrain_focalcodec.modules.layouts import StridedConv
from speechbrain_focalcodec.modules.masking import zero_beyond

__all__ = ["SEGMENT", "ConvLayer", "FeatureExtractor"]

# Frames per segment.
SEGMENT = 50


class ConvLayer(nn.Module):
    """Strided convolution without bias, LayerNorm and GELU."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int,
        stride: int,
        causal: bool = False,
    ):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.causal = causal
        self.conv = StridedConv(
            in_dim, out_dim, kernel_size, stride, bias=False
        )
        self.norm = nn.LayerNorm(out_dim)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of steps after the convolution, int64 [B]; at least 1."""
        if self.causal:
            return (lengths - 1) // self.stride + 1
        # Shorter inputs are padded to the kernel with zeros.
        padded = lengths.clamp(min=self.kernel_size)
        return (padded - self.kernel_size) // self.stride + 1

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Steps [B, T, in_dim] to steps [B, T', out_dim]."""
        if self.causal:
            x = extend_left(x, self.kernel_size - 1, state)
        else:
            # Only inputs shorter than the kernel see padding.
            x = zero_beyond(x, lengths)
            if x.shape[1] < self.kernel_size:
                x = F.pad(x, (0, 0, 0, self.kernel_size - x.shape[1]))
        x = self.norm(self.conv(x))
        # In place: half of the memory to write.
        return torch.ops.aten.gelu_(x) if fast_path(x) else F.gelu(x)


class FeatureExtractor(nn.Module):
    """The stack of strided convolutions."""

    layers: Any

    def __init__(
        self,
        hidden_dims: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        causal: bool = False,
    ):
        super().__init__()
        in_dims = [1, *hidden_dims[:-1]]
        self.layers = nn.ModuleList(
            ConvLayer(*layer, causal)
            for layer in zip(
                in_dims, hidden_dims, kernel_sizes, strides, strict=True
            )
        )
        self.causal = causal
        self.hop_length = math.prod(strides)

    @property
    def reach(self) -> int:
        """Samples that a frame depends on."""
        reach = 1
        for layer in reversed(self.layers):
            reach = (reach - 1) * layer.stride + layer.kernel_size
        return reach

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of frames for numbers of samples, int64 [B]."""
        for layer in self.layers:
            lengths = layer.output_lengths(lengths)
        return lengths

    def forward(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Waveform [B, T] to frames [B, N, hidden_dims[-1]]."""
        if self.causal or not fast_path(sig):
            return self._extract(sig, lengths, state)
        # By segments, each frame from its own samples: hidden steps stay in
        # the processor's cache.
        size = SEGMENT * self.hop_length
        if sig.shape[1] < 2 * size:
            return self._extract(sig, lengths)
        total = int(self.output_lengths(torch.tensor(sig.shape[1])))
        x: Any = None
        for start in range(0, total, SEGMENT):
            stop = min(start + SEGMENT, total)
            part = sig[
                :,
                start * self.hop_length : (stop - 1) * self.hop_length
                + self.reach,
            ]
            # Lengths matter only to inputs shorter than a frame.
            frames = self._extract(
                part,
                lengths.clamp(max=part.shape[1])
                if lengths is not None and start == 0
                else None,
            )
            if x is None:
                x = frames.new_empty(len(sig), total, frames.shape[2])
            x[:, start:stop] = frames
        return x

    def _extract(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Frames of a whole signal, layer by layer."""
        # Lengths matter only to inputs of an offline model that are shorter
        # than a frame. They are read once: each read waits for the GPU.
        if self.causal or (
            lengths is not None and int(lengths.min()) >= self.reach
        ):
            lengths = None
        x = sig[..., None]
        for i, layer in enumerate(self.layers):
            x = layer(x, lengths, scope(state, f"layers.{i}"))
            if lengths is not None:
                lengths = layer.output_lengths(lengths)
        return x
