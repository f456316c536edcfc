"""WavLM encoder (Chen et al., 2022): waveform to features at 50 Hz.

The first layers of WavLM-large as used by FocalCodec: strided convolutions, a
convolutional position embedding and pre-norm transformer layers with a gated
relative position bias, without a final norm. The causal variant is
FocalCodec-Stream's: left context only in the convolutions, attention in chunks
over a window. Names of submodules are those of the published weights.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.attention import (
    PositionBias,
    RelativeAttention,
    position_bias,
)
from speechbrain_focalcodec.modules.causal import (
    StreamState,
    extend_left,
    scope,
)
from speechbrain_focalcodec.modules.derived import Derived
from speechbrain_focalcodec.modules.extractor import FeatureExtractor
from speechbrain_focalcodec.modules.feed_forward import FeedForward
from speechbrain_focalcodec.modules.layouts import Linear, WideConv
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.modules.part import Encoder

__all__ = ["WavLM"]


class PositionalEmbedding(nn.Module):
    """Grouped convolution whose output is added to the frames."""

    def __init__(
        self, dim: int, kernel_size: int, groups: int, causal: bool = False
    ):
        super().__init__()
        self.causal = causal
        self.conv = WideConv(dim, kernel_size, groups)

    def forward(
        self, x: torch.Tensor, state: StreamState | None = None
    ) -> torch.Tensor:
        """Frames [B, T, dim], zero in the padding, to their embedding."""
        kernel = self.conv.kernel_size[0]
        if self.causal:
            x = extend_left(x, kernel - 1, state)
        else:
            # Drops the last frame of an even kernel.
            x = F.pad(x, (0, 0, kernel // 2, (kernel - 1) // 2))
        return F.gelu(self.conv(x))


class TransformerLayer(nn.Module):
    """Attention and feed-forward network, each after a norm, residual."""

    def __init__(
        self,
        attention: RelativeAttention,
        dim: int,
        ffn_dim: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout)

    def forward(
        self,
        x: torch.Tensor,
        bias: PositionBias,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Frames [B, T, dim] to frames, see :class:`RelativeAttention`."""
        state = scope(state, "attention")
        y = self.attention_norm(x)
        x = x + self.attention(y, bias, lengths, state)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TransformerEncoder(nn.Module):
    """Position embedding and transformer layers.

    See :class:`WavLM` for the options.
    """

    layers: Any

    def __init__(
        self,
        num_layers: int,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        conv_pos: int,
        conv_pos_groups: int,
        num_buckets: int,
        max_distance: int,
        dropout: float = 0.0,
        chunk: int | None = None,
        window_size: int = 512,
    ):
        super().__init__()
        self.positional_embedding = PositionalEmbedding(
            dim, conv_pos, conv_pos_groups, chunk is not None
        )
        self.relative_embedding = nn.Embedding(num_buckets, num_heads)
        self.position_bias = Derived(
            partial(position_bias, max_distance=max_distance)
        )
        self.layers = nn.ModuleList(
            TransformerLayer(
                RelativeAttention(dim, num_heads, chunk, window_size),
                dim,
                ffn_dim,
                dropout,
            )
            for _ in range(num_layers)
        )

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Frames [B, T, dim] to the last layer's output [B, T, dim]."""
        x = zero_beyond(x, lengths).to(self.relative_embedding.weight.dtype)
        x = x + self.positional_embedding(x, scope(state, "position"))
        reach = self.layers[0].attention.reach(x.shape[1])
        bias = PositionBias(
            self.position_bias(self.relative_embedding.weight, reach),
            None if state is None else state.scratch,
        )
        for i, layer in enumerate(self.layers):
            x = layer(x, bias, lengths, scope(state, f"layers.{i}"))
        return x


class WavLM(Encoder):
    """Waveform to the hidden state of WavLM's last kept layer.

    Arguments
    ---------
    hidden_dims, kernel_sizes, strides : sequence of int
        Of the strided convolutions.
    num_layers, dim, ffn_dim, num_heads : int
        Of the transformer.
    conv_pos, conv_pos_groups : int
        Taps and groups of the position embedding.
    num_buckets, max_distance : int
        Of the relative positions.
    dropout : float
        Dropout of the feed-forward networks, in training.
    causal : bool
        Whether to use left context and chunks of frames.
    window_size : int
        Causal only: frames that attention sees.
    lookahead_size : int
        Causal only: a chunk has 1 + lookahead_size frames.
    max_cached_steps, use_flex_attention
        Accepted for published configurations; without effect.
    """

    sample_rate = 16000

    def __init__(
        self,
        hidden_dims: Sequence[int] = (512,) * 7,
        kernel_sizes: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        num_layers: int = 6,
        dim: int = 1024,
        ffn_dim: int = 4096,
        num_heads: int = 16,
        conv_pos: int = 128,
        conv_pos_groups: int = 16,
        num_buckets: int = 320,
        max_distance: int = 800,
        dropout: float = 0.0,
        causal: bool = False,
        window_size: int = 512,
        lookahead_size: int = 3,
        max_cached_steps: int = 2048,
        use_flex_attention: bool = False,
    ):
        super().__init__()
        self.causal = causal
        self.output_dim = dim
        self.chunk = 1 + lookahead_size if causal else 1
        self.hop_length = math.prod(strides)
        self.feature_extractor = FeatureExtractor(
            hidden_dims, kernel_sizes, strides, causal
        )
        self.norm = nn.LayerNorm(hidden_dims[-1])
        self.feature_proj = Linear(hidden_dims[-1], dim)
        self.encoder = TransformerEncoder(
            num_layers,
            dim,
            ffn_dim,
            num_heads,
            conv_pos,
            conv_pos_groups,
            num_buckets,
            max_distance,
            dropout,
            self.chunk if causal else None,
            window_size,
        )

    @property
    def overhang(self) -> int:  # type: ignore[override]
        """Samples that a frame needs beyond its own hop."""
        if self.causal:
            return 0
        return max(self.feature_extractor.reach - self.hop_length, 0)

    @property
    def margin(self) -> int:  # type: ignore[override]
        """Frames after a cut that need samples before it."""
        reach = self.feature_extractor.reach
        return -(-(reach - 1) // self.hop_length) if self.causal else 0

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return self.feature_extractor.output_lengths(lengths)

    def forward(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Waveform [B, T] at 16 kHz to features [B, N, dim].

        In a stream, all chunks but the last hold a multiple of chunk * 320
        samples.
        """
        x = self.feature_extractor(sig, lengths, scope(state, "extractor"))
        x = self.feature_proj(self.norm(x))
        if lengths is not None:
            lengths = self.output_lengths(lengths)
        return self.encoder(x, lengths, scope(state, "encoder"))
