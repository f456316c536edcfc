"""WavLM encoder (Chen et al., 2022): waveform to features at 50 Hz.

The first layers of WavLM-large as FocalCodec uses them: strided convolutions,
a convolutional position embedding and pre-norm transformer layers with a
gated relative position bias, and no norm at the end. The causal variant is
FocalCodec-Stream's: left context only in the convolutions, attention by
chunks over a window. Names of parts are those of the published weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import (
    StreamState,
    extend_left,
    scope,
)
from speechbrain_focalcodec.modules.focal import FeedForward
from speechbrain_focalcodec.modules.masking import zero_beyond

__all__ = ["WavLM"]

# Queries whose scores are held at once: bounds memory at heads x this x T.
QUERY_BLOCK = 1024


class ConvLayer(nn.Module):
    """Strided convolution without bias, LayerNorm and GELU.

    Arguments
    ---------
    in_dim, out_dim : int
        Channels.
    kernel_size, stride : int
        Taps and hop.
    causal : bool
        Whether to pad on the left, and so look to the left only.

    Example
    -------
    >>> ConvLayer(1, 4, 10, 5)(torch.randn(2, 100, 1)).shape
    torch.Size([2, 19, 4])
    """

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
        self.conv = nn.Conv1d(in_dim, out_dim, kernel_size, stride, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of steps after the convolution.

        Arguments
        ---------
        lengths : torch.Tensor
            Steps, int64 [B].

        Returns
        -------
        torch.Tensor
            Steps, int64 [B]; at least 1.
        """
        if self.causal:
            return (lengths - 1) // self.stride + 1
        # What is shorter than the kernel is filled up to it with zeros.
        padded = lengths.clamp(min=self.kernel_size)
        return (padded - self.kernel_size) // self.stride + 1

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Apply the layer.

        Arguments
        ---------
        x : torch.Tensor
            Steps [B, T, in_dim].
        lengths : torch.Tensor, optional
            Steps, int64 [B].
        state : StreamState, optional
            Causal only: context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Steps [B, T', out_dim].
        """
        if self.causal:
            x = extend_left(x, self.kernel_size - 1, state)
        else:
            # Padding is seen only by what is shorter than the kernel.
            if lengths is not None and int(lengths.min()) < self.kernel_size:
                x = zero_beyond(x, lengths)
            x = F.pad(x, (0, 0, 0, max(0, self.kernel_size - x.shape[1])))
        return F.gelu(self.norm(self.conv(x.mT).mT))


class FeatureExtractor(nn.Module):
    """The stack of strided convolutions.

    Arguments
    ---------
    hidden_dims, kernel_sizes, strides : sequence of int
        Of each layer.
    causal : bool
        See :class:`ConvLayer`.

    Example
    -------
    >>> FeatureExtractor((4, 4), (10, 3), (5, 2))(torch.randn(1, 100)).shape
    torch.Size([1, 9, 4])
    """

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
        for layer in self.layers:
            lengths = layer.output_lengths(lengths)
        return lengths

    def forward(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Extract frames.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor, optional
            Samples, int64 [B].
        state : StreamState, optional
            Causal only: context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Frames [B, N, hidden_dims[-1]].
        """
        x = sig[..., None]
        for i, layer in enumerate(self.layers):
            x = layer(x, lengths, scope(state, f"layers.{i}"))
            if lengths is not None:
                lengths = layer.output_lengths(lengths)
        return x


class PositionalEmbedding(nn.Module):
    """Grouped convolution over frames, whose output is added to them.

    Arguments
    ---------
    dim : int
        Channels.
    kernel_size, groups : int
        Taps and groups of the convolution.
    causal : bool
        Whether to look to the left only.

    Example
    -------
    >>> PositionalEmbedding(8, 16, 4)(torch.randn(2, 9, 8)).shape
    torch.Size([2, 9, 8])
    """

    def __init__(
        self, dim: int, kernel_size: int, groups: int, causal: bool = False
    ):
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv1d(dim, dim, kernel_size, groups=groups)

    def forward(
        self, x: torch.Tensor, state: StreamState | None = None
    ) -> torch.Tensor:
        """Compute the embedding.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, dim], zero in the padding.
        state : StreamState, optional
            Causal only: context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Embedding [B, T, dim].
        """
        kernel = self.conv.kernel_size[0]
        if self.causal:
            x = extend_left(x, kernel - 1, state)
        else:
            # An even kernel gives one frame too many: the last is dropped.
            x = F.pad(x, (0, 0, kernel // 2, (kernel - 1) // 2))
        return F.gelu(self.conv(x.mT).mT)


class RelativeAttention(nn.Module):
    """Self-attention with WavLM's gated relative position bias.

    Causal, frames come in chunks; a chunk sees itself and what precedes it,
    `window_size` frames in all.

    Arguments
    ---------
    dim, num_heads : int
        Channels and heads.
    num_buckets, max_distance : int
        Of the relative positions (T5).
    chunk : int, optional
        Frames a chunk; None when offline.
    window_size : int
        Causal only: frames that a chunk sees.

    Example
    -------
    >>> attention = RelativeAttention(8, 2, 32, 64)
    >>> attention(torch.randn(1, 9, 8), torch.randn(32, 2)).shape
    torch.Size([1, 9, 8])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_buckets: int,
        max_distance: int,
        chunk: int | None = None,
        window_size: int = 512,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.chunk = chunk
        self.window_size = window_size
        head_dim = dim // num_heads
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.gru_rel_pos_linear = nn.Linear(head_dim, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(
        self,
        x: torch.Tensor,
        embedding: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Attend.

        Arguments
        ---------
        x : torch.Tensor
            Normalised frames [B, T, dim].
        embedding : torch.Tensor
            Bias of each bucket and head [num_buckets, num_heads].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Causal only: keys and values of earlier chunks.

        Returns
        -------
        torch.Tensor
            Frames [B, T, dim].
        """
        steps = x.shape[1]
        query, key, value = (
            self._split_heads(y) for y in self.qkv_proj(x).chunk(3, dim=-1)
        )
        gate = self._gate(self._split_heads(x))
        if state is not None:
            key, value = self._carry(key, value, state)
        past = key.shape[2] - steps
        total = lengths if lengths is not None else x.new_tensor([steps]).long()
        total = total + past

        outputs = []
        block = QUERY_BLOCK
        if self.chunk is not None:
            block = max(1, block // self.chunk) * self.chunk
        for start in range(0, steps, block):
            stop = min(start + block, steps)
            low, high = 0, past + steps
            if self.chunk is not None:
                # The cut of a last chunk reaches further to the left.
                low = max(0, past + start - self.window_size)
                high = past + stop
            bias = self._position_bias(
                embedding, past + start, stop - start, low, high - low
            )
            scores = gate[:, :, start:stop] * bias
            queries = torch.arange(past + start, past + stop, device=x.device)
            keys = torch.arange(low, high, device=x.device)
            allowed = self._allowed(queries, keys, total)
            scores = scores.masked_fill(
                ~allowed[:, None], torch.finfo(scores.dtype).min
            )
            outputs.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:stop],
                    key[:, :, low:high],
                    value[:, :, low:high],
                    attn_mask=scores.to(query.dtype),
                )
            )
        output = torch.cat(outputs, dim=2)
        return self.out_proj(output.transpose(1, 2).flatten(2))

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, dim] to [B, heads, T, head_dim]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _gate(self, x: torch.Tensor) -> torch.Tensor:
        """Gate of the position bias [B, heads, T, 1] from split frames."""
        y = self.gru_rel_pos_linear(x).unflatten(-1, (2, 4)).sum(-1)
        a, b = torch.sigmoid(y).chunk(2, dim=-1)
        return a * (b * self.gru_rel_pos_const - 1.0) + 2.0

    def _carry(
        self, key: torch.Tensor, value: torch.Tensor, state: StreamState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put kept keys and values before the new ones, and keep the last."""
        kept_key, kept_value = state.get("key"), state.get("value")
        if kept_key is not None and kept_value is not None:
            key = torch.cat([kept_key, key], dim=2)
            value = torch.cat([kept_value, value], dim=2)
        keep = max(key.shape[2] - (self.window_size - 1), 0)
        state["key"], state["value"] = key[:, :, keep:], value[:, :, keep:]
        return key, value

    def _allowed(
        self, queries: torch.Tensor, keys: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """Which keys each query sees: bool [B, queries, keys]."""
        total = total[:, None, None]
        if self.chunk is None:
            return (keys < total).expand(-1, len(queries), -1)
        # The first query of a block starts a chunk.
        first = queries[:1]
        end = first + ((queries - first) // self.chunk + 1) * self.chunk
        end = torch.minimum(end[:, None], total)
        return (keys < end) & (keys >= end - self.window_size)

    def _position_bias(
        self,
        embedding: torch.Tensor,
        first_query: int,
        queries: int,
        first_key: int,
        keys: int,
    ) -> torch.Tensor:
        """Bias [heads, queries, keys], a function of key - query alone.

        One value for each distance is looked up; rows are views shifted by
        one.
        """
        distance = torch.arange(queries + keys - 1, device=embedding.device)
        distance = distance + (first_key - first_query - queries + 1)
        bias = embedding[self._bucket(distance)].T
        return bias.unfold(-1, keys, 1).flip(1)

    def _bucket(self, distance: torch.Tensor) -> torch.Tensor:
        """T5's bucket of a distance: near ones exact, far ones logarithmic."""
        half = self.num_buckets // 2
        exact = half // 2
        size = distance.abs()
        far = torch.log(size.clamp(min=1).float() / exact)
        far = far / math.log(self.max_distance / exact) * (half - exact)
        far = (exact + far.long()).clamp(max=half - 1)
        return (distance > 0) * half + torch.where(size < exact, size, far)


class TransformerLayer(nn.Module):
    """Attention and feed-forward network, each after a norm, residual.

    Arguments
    ---------
    attention : RelativeAttention
        The attention.
    dim, ffn_dim : int
        Channels outside and inside the feed-forward network.
    dropout : float
        Dropout of the feed-forward network.

    Example
    -------
    >>> layer = TransformerLayer(RelativeAttention(8, 2, 32, 64), 8, 16)
    >>> layer(torch.randn(1, 9, 8), torch.randn(32, 2)).shape
    torch.Size([1, 9, 8])
    """

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
        embedding: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Apply the layer.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, dim].
        embedding, lengths, state
            See :meth:`RelativeAttention.forward`.

        Returns
        -------
        torch.Tensor
            Frames [B, T, dim].
        """
        state = scope(state, "attention")
        y = self.attention_norm(x)
        x = x + self.attention(y, embedding, lengths, state)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TransformerEncoder(nn.Module):
    """Position embedding and transformer layers.

    Arguments
    ---------
    num_layers, dim, ffn_dim, num_heads : int
        Sizes.
    conv_pos, conv_pos_groups : int
        Taps and groups of the position embedding.
    num_buckets, max_distance : int
        Of the relative positions.
    dropout : float
        Dropout of the feed-forward networks.
    chunk, window_size : int
        See :class:`RelativeAttention`.

    Example
    -------
    >>> encoder = TransformerEncoder(2, 8, 16, 2, 16, 4, 32, 64)
    >>> encoder(torch.randn(1, 9, 8)).shape
    torch.Size([1, 9, 8])
    """

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
        self.layers = nn.ModuleList(
            TransformerLayer(
                RelativeAttention(
                    dim,
                    num_heads,
                    num_buckets,
                    max_distance,
                    chunk,
                    window_size,
                ),
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
        """Encode frames.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, dim].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Causal only: context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Hidden state after the last layer [B, T, dim].
        """
        x = zero_beyond(x, lengths)
        x = x + self.positional_embedding(x, scope(state, "position"))
        embedding = self.relative_embedding.weight
        for i, layer in enumerate(self.layers):
            x = layer(x, embedding, lengths, scope(state, f"layers.{i}"))
        return x


class WavLM(nn.Module):
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
        Causal only: a chunk is one frame and this many more.

    Example
    -------
    >>> encoder = WavLM(num_layers=1, dim=32, ffn_dim=64, num_heads=4)
    >>> encoder(torch.randn(1, 16000)).shape
    torch.Size([1, 49, 32])
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
    ):
        super().__init__()
        self.causal = causal
        self.output_dim = dim
        self.chunk = 1 + lookahead_size if causal else None
        self.hop_length = math.prod(strides)
        self.feature_extractor = FeatureExtractor(
            hidden_dims, kernel_sizes, strides, causal
        )
        self.norm = nn.LayerNorm(hidden_dims[-1])
        self.feature_proj = nn.Linear(hidden_dims[-1], dim)
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
            self.chunk,
            window_size,
        )

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
        return self.feature_extractor.output_lengths(lengths)

    def forward(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Encode.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at 16 kHz.
        lengths : torch.Tensor, optional
            Samples, int64 [B].
        state : StreamState, optional
            Causal only: context of earlier chunks. Every chunk but the last
            must hold a multiple of chunk * 320 samples.

        Returns
        -------
        torch.Tensor
            Features [B, N, dim].
        """
        x = self.feature_extractor(sig, lengths, scope(state, "extractor"))
        x = self.feature_proj(self.norm(x))
        if lengths is not None:
            lengths = self.output_lengths(lengths)
        return self.encoder(x, lengths, scope(state, "encoder"))
