"""Focal modulation: the compressor and the decompressor.

Focal modulation (Yang et al., 2022) replaces attention by depthwise
convolutions of growing width and a global mean, gated per frame; FocalCodec
(sections 3.1 and 3.3) stacks three such blocks between down- or up-scaling.
Names of parts are those of the published weights.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import (
    StreamState,
    extend_left,
    scope,
)
from speechbrain_focalcodec.modules.masking import length_mask, zero_beyond

__all__ = ["FocalDecoder", "FocalEncoder"]


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha with one alpha a channel (Ziyin et al.).

    Arguments
    ---------
    dim : int
        Channels.

    Example
    -------
    >>> Snake(4)(torch.zeros(2, 3, 4)).abs().sum().item()
    0.0
    """

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to frames [B, T, dim].

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, dim].

        Returns
        -------
        torch.Tensor
            Same shape.
        """
        alpha = self.alpha[:, 0]
        return x + (alpha * x).sin().square() / (alpha + 1e-9)


class ScaledTanh(nn.Module):
    """tanh(alpha x) with one alpha, the norm of the causal blocks.

    Arguments
    ---------
    init : float
        First value of alpha.

    Example
    -------
    >>> ScaledTanh()(torch.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def __init__(self, init: float = 0.5):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), init))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply element by element.

        Arguments
        ---------
        x : torch.Tensor
            Any shape.

        Returns
        -------
        torch.Tensor
            Same shape.
        """
        return torch.tanh(self.alpha * x)


def _norm(dim: int, causal: bool) -> nn.Module:
    """The norm of a focal block."""
    return ScaledTanh() if causal else nn.LayerNorm(dim)


class FeedForward(nn.Module):
    """Two linear layers with GELU between.

    Arguments
    ---------
    dim, hidden_dim : int
        Channels outside and inside.
    dropout : float
        Dropout after the activation, in training.

    Example
    -------
    >>> FeedForward(4, 16)(torch.randn(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to frames [..., dim].

        Arguments
        ---------
        x : torch.Tensor
            Frames [..., dim].

        Returns
        -------
        torch.Tensor
            Same shape.
        """
        return self.out_proj(self.dropout(F.gelu(self.in_proj(x))))


class FocalModulation(nn.Module):
    """Mix frames by gated convolutions of growing width and a mean.

    Arguments
    ---------
    dim : int
        Channels.
    focal_window, focal_level, focal_factor : int
        Kernel ``focal_window + focal_factor * k`` at level k.
    use_norm : bool
        Whether a norm stands before the output projection.
    normalize_modulator : bool
        Whether to divide the sum of the levels by their number.
    causal : bool
        Whether to look to the left only; the mean becomes a convolution.
    window_size : int
        Causal only: taps of that convolution.

    Example
    -------
    >>> FocalModulation(4)(torch.randn(2, 9, 4)).shape
    torch.Size([2, 9, 4])
    """

    def __init__(
        self,
        dim: int,
        focal_window: int = 7,
        focal_level: int = 2,
        focal_factor: int = 2,
        use_norm: bool = False,
        normalize_modulator: bool = False,
        causal: bool = False,
        window_size: int = 512,
    ):
        super().__init__()
        self.dim = dim
        self.focal_level = focal_level
        self.normalize_modulator = normalize_modulator
        self.causal = causal
        kernels = [focal_window + focal_factor * k for k in range(focal_level)]
        if causal:
            kernels.append(window_size)
        self.in_proj = nn.Linear(dim, 2 * dim + focal_level + 1)
        # The one-element Sequential keeps the published names.
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(dim, dim, kernel, groups=dim))
            for kernel in kernels
        )
        self.context_proj = nn.Conv1d(dim, dim, 1)
        self.norm = _norm(dim, causal) if use_norm else nn.Identity()
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Mix frames.

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
            Frames [B, T, dim].
        """
        query, context, gates = self.in_proj(x).split(
            [self.dim, self.dim, self.focal_level + 1], dim=-1
        )
        context = context.transpose(1, 2)
        gates = gates.transpose(1, 2)
        mask = None
        if lengths is not None and not self.causal:
            mask = ~length_mask(lengths, x.shape[1])[:, None]

        total = torch.zeros_like(context)
        for k, layer in enumerate(self.layers):
            kept = scope(state, f"layers.{k}")
            context = F.gelu(self._convolve(layer[0], context, mask, kept))
            total = total + context * gates[:, k : k + 1]
        if not self.causal:
            mean = F.gelu(self._mean(context, mask, lengths))
            total = total + mean * gates[:, self.focal_level :]
        if self.normalize_modulator:
            total = total / (self.focal_level + 1)
        modulator = self.context_proj(total).transpose(1, 2)
        return self.out_proj(self.norm(query * modulator))

    def _convolve(
        self,
        conv: nn.Conv1d,
        context: torch.Tensor,
        mask: torch.Tensor | None,
        state: StreamState | None,
    ) -> torch.Tensor:
        """Depthwise convolution of [B, dim, T] that keeps T."""
        taps = conv.kernel_size[0] - 1
        if self.causal:
            context = extend_left(context.transpose(1, 2), taps, state)
            return conv(context.transpose(1, 2))
        if mask is not None:
            context = context.masked_fill(mask, 0)
        if taps % 2 == 0:
            return F.conv1d(
                context,
                conv.weight,
                conv.bias,
                padding=taps // 2,
                groups=self.dim,
            )
        return conv(F.pad(context, (taps // 2, taps - taps // 2)))

    def _mean(
        self,
        context: torch.Tensor,
        mask: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mean of [B, dim, T] over each utterance's own frames."""
        if mask is None or lengths is None:
            return context.mean(dim=-1, keepdim=True)
        total = context.masked_fill(mask, 0).sum(dim=-1, keepdim=True)
        return total / lengths[:, None, None]


class FocalBlock(nn.Module):
    """Focal modulation and a feed-forward network, both residual.

    Arguments
    ---------
    dim : int
        Channels.
    focal_window, focal_level, focal_factor, normalize_modulator, causal,
    window_size
        See :class:`FocalModulation`.
    dropout : float
        Dropout of the feed-forward network.
    use_post_norm : bool
        Whether the norms come after the branches instead of before.
    use_layerscale : bool
        Whether the branches are scaled by a learned vector.
    layerscale_init : float
        First value of that vector.

    Example
    -------
    >>> FocalBlock(4)(torch.randn(2, 9, 4)).shape
    torch.Size([2, 9, 4])
    """

    def __init__(
        self,
        dim: int,
        focal_window: int = 7,
        focal_level: int = 2,
        focal_factor: int = 2,
        dropout: float = 0.0,
        use_post_norm: bool = False,
        use_layerscale: bool = False,
        layerscale_init: float = 1e-4,
        normalize_modulator: bool = False,
        causal: bool = False,
        window_size: int = 512,
    ):
        super().__init__()
        self.use_post_norm = use_post_norm
        self.modulation_norm = _norm(dim, causal)
        self.modulation = FocalModulation(
            dim,
            focal_window,
            focal_level,
            focal_factor,
            use_post_norm,
            normalize_modulator,
            causal,
            window_size,
        )
        self.feed_forward_norm = _norm(dim, causal)
        self.feed_forward = FeedForward(dim, 4 * dim, dropout)
        self.modulation_gamma: torch.Tensor | float = 1.0
        self.feed_forward_gamma: torch.Tensor | float = 1.0
        if use_layerscale:
            scale = torch.full((dim,), layerscale_init)
            self.modulation_gamma = nn.Parameter(scale.clone())
            self.feed_forward_gamma = nn.Parameter(scale)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Apply the block.

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
            Frames [B, T, dim].
        """
        state = scope(state, "modulation")
        if self.use_post_norm:
            y = self.modulation_norm(self.modulation(x, lengths, state))
            x = x + self.modulation_gamma * y
            y = self.feed_forward_norm(self.feed_forward(x))
        else:
            y = self.modulation(self.modulation_norm(x), lengths, state)
            x = x + self.modulation_gamma * y
            y = self.feed_forward(self.feed_forward_norm(x))
        return x + self.feed_forward_gamma * y


class DownScale(nn.Module):
    """Strided convolution and Snake: T frames to ceil(T / factor).

    Arguments
    ---------
    in_dim, out_dim : int
        Channels.
    factor : int
        Kernel and stride.
    causal : bool
        Whether a frame sees only what came before; pads on the left.

    Example
    -------
    >>> DownScale(4, 6, 2)(torch.randn(2, 9, 4)).shape
    torch.Size([2, 5, 6])
    """

    def __init__(
        self, in_dim: int, out_dim: int, factor: int, causal: bool = False
    ):
        super().__init__()
        self.factor = factor
        self.causal = causal
        self.downscale = nn.Conv1d(in_dim, out_dim, factor, stride=factor)
        self.activation = Snake(out_dim)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of frames after down-scaling.

        Arguments
        ---------
        lengths : torch.Tensor
            Frames, int64 [B].

        Returns
        -------
        torch.Tensor
            Frames, int64 [B].
        """
        return (lengths + self.factor - 1) // self.factor

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Down-scale.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, in_dim].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Causal only: context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Frames [B, ceil(T / factor), out_dim].
        """
        if self.causal:
            x = extend_left(x, self.factor - 1, state)
        else:
            x = zero_beyond(x, lengths)
            x = F.pad(x, (0, 0, 0, -x.shape[1] % self.factor))
        return self.activation(self.downscale(x.mT).mT)


class UpScale(nn.Module):
    """Snake and transposed convolution: T frames to T * factor.

    Kernel and stride are equal, so each frame makes its own `factor` frames;
    that is causal as it stands.

    Arguments
    ---------
    in_dim, out_dim : int
        Channels.
    factor : int
        Kernel and stride.

    Example
    -------
    >>> UpScale(4, 6, 2)(torch.randn(2, 5, 4)).shape
    torch.Size([2, 10, 6])
    """

    def __init__(self, in_dim: int, out_dim: int, factor: int):
        super().__init__()
        self.activation = Snake(in_dim)
        self.upscale = nn.ConvTranspose1d(
            in_dim, out_dim, factor, stride=factor
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Up-scale.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, in_dim].

        Returns
        -------
        torch.Tensor
            Frames [B, T * factor, out_dim].
        """
        return self.upscale(self.activation(x).mT).mT


class Refiner(nn.Module):
    """Correct each chunk of quantized features with its own lookahead.

    FocalCodec-Stream, section 2.3: the frames of a chunk are decoded
    together, so the last may inform the first at no latency.

    Arguments
    ---------
    dim : int
        Feature dimension.
    chunk : int
        Frames a chunk.

    Example
    -------
    >>> Refiner(6, 4)(torch.randn(2, 9, 6)).shape
    torch.Size([2, 9, 6])
    """

    def __init__(self, dim: int, chunk: int):
        super().__init__()
        self.chunk = chunk
        self.in_proj = nn.Linear(chunk * dim, chunk * dim)
        self.out_proj = nn.Linear(chunk * dim, chunk * dim)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Refine features.

        Arguments
        ---------
        x : torch.Tensor
            Features [B, T, dim]; a last partial chunk is filled with zeros.
        lengths : torch.Tensor, optional
            Frames, int64 [B].

        Returns
        -------
        torch.Tensor
            Features [B, T, dim].
        """
        batch, steps, dim = x.shape
        y = zero_beyond(x, lengths)
        y = F.pad(y, (0, 0, 0, -steps % self.chunk))
        y = y.reshape(batch, -1, self.chunk * dim)
        y = self.out_proj(F.gelu(self.in_proj(y)))
        return x + y.reshape(batch, -1, dim)[:, :steps]


class FocalLayer(nn.Module):
    """One focal block with its down- or up-scaling, under published names.

    Arguments
    ---------
    focal_block : FocalBlock
        The block.
    downscale : DownScale, optional
        Comes before the block.
    upscale : UpScale, optional
        Comes after the block.

    Example
    -------
    >>> FocalLayer(FocalBlock(4), downscale=DownScale(2, 4, 1))(
    ...     torch.randn(1, 3, 2)
    ... ).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        focal_block: FocalBlock,
        downscale: DownScale | None = None,
        upscale: UpScale | None = None,
    ):
        super().__init__()
        self.focal_block = focal_block
        self.downscale = downscale
        self.upscale = upscale

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of frames that the block sees.

        Arguments
        ---------
        lengths : torch.Tensor
            Frames, int64 [B].

        Returns
        -------
        torch.Tensor
            Frames after down-scaling, int64 [B].
        """
        if self.downscale is None:
            return lengths
        return self.downscale.output_lengths(lengths)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Scale and mix.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, C].
        lengths : torch.Tensor, optional
            Frames of `x`, int64 [B].
        state : StreamState, optional
            Causal only: context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Frames [B, T', C'].
        """
        if self.downscale is not None:
            x = self.downscale(x, lengths, scope(state, "downscale"))
            if lengths is not None:
                lengths = self.output_lengths(lengths)
        x = self.focal_block(x, lengths, scope(state, "focal_block"))
        return x if self.upscale is None else self.upscale(x)


class FocalEncoder(nn.Module):
    """Compressor: features to unquantized, unnormalised latents.

    Arguments
    ---------
    input_dim, output_dim : int
        Features and latents.
    hidden_dims : sequence of int
        Channels of the blocks.
    downscale_factors : sequence of int
        Factor before each block.
    causal : bool
        Whether to look to the left only.
    window_size : int
        Causal only: frames of the widest convolution.
    **block : dict
        Options of :class:`FocalBlock`.

    Example
    -------
    >>> compressor = FocalEncoder(8, 5, (8, 6, 4), (2, 1, 1))
    >>> compressor(torch.randn(2, 9, 8)).shape
    torch.Size([2, 5, 5])
    """

    def __init__(
        self,
        input_dim: int = 1024,
        output_dim: int = 13,
        hidden_dims: Sequence[int] = (1024, 512, 256),
        downscale_factors: Sequence[int] = (1, 1, 1),
        causal: bool = False,
        window_size: int = 512,
        **block,
    ):
        super().__init__()
        block = {"causal": causal, "window_size": window_size, **block}
        in_dims = [input_dim, *hidden_dims[:-1]]
        self.layers = nn.ModuleList(
            FocalLayer(
                FocalBlock(dim, **block),
                downscale=DownScale(in_dim, dim, factor, causal),
            )
            for in_dim, dim, factor in zip(
                in_dims, hidden_dims, downscale_factors, strict=True
            )
        )
        self.out_proj = nn.Linear(hidden_dims[-1], output_dim)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of latents for a number of feature frames.

        Arguments
        ---------
        lengths : torch.Tensor
            Feature frames, int64 [B].

        Returns
        -------
        torch.Tensor
            Latents, int64 [B].
        """
        for layer in self.layers:
            lengths = layer.output_lengths(lengths)
        return lengths

    def forward(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Compress.

        Arguments
        ---------
        feats : torch.Tensor
            Features [B, T, input_dim].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Causal only: context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Latents [B, N, output_dim].
        """
        x = feats
        for i, layer in enumerate(self.layers):
            x = layer(x, lengths, scope(state, f"layers.{i}"))
            if lengths is not None:
                lengths = layer.output_lengths(lengths)
        return self.out_proj(x)


class FocalDecoder(nn.Module):
    """Decompressor: codes to quantized features.

    Arguments
    ---------
    input_dim, output_dim : int
        Codes and features.
    hidden_dims : sequence of int
        Channels of the blocks.
    upscale_factors : sequence of int
        Factor after each block.
    causal : bool
        Whether to look to the left only.
    window_size, last_window_size : int
        Causal only: frames of the widest convolution, in all blocks but the
        last and in the last.
    lookahead_size : int
        Causal only: the refiner sees chunks of one frame and this many more;
        0 leaves it out.
    **block : dict
        Options of :class:`FocalBlock`.

    Example
    -------
    >>> decompressor = FocalDecoder(5, 8, (4, 6, 8), (1, 1, 2))
    >>> decompressor(torch.randn(2, 5, 5)).shape
    torch.Size([2, 10, 8])
    """

    def __init__(
        self,
        input_dim: int = 13,
        output_dim: int = 1024,
        hidden_dims: Sequence[int] = (256, 512, 1024),
        upscale_factors: Sequence[int] = (1, 1, 1),
        causal: bool = False,
        window_size: int = 512,
        last_window_size: int = 512,
        lookahead_size: int = 3,
        **block,
    ):
        super().__init__()
        block = {"causal": causal, **block}
        windows = [window_size] * (len(hidden_dims) - 1) + [last_window_size]
        out_dims = [*hidden_dims[1:], output_dim]
        self.factors = tuple(upscale_factors)
        self.in_proj = nn.Linear(input_dim, hidden_dims[0])
        self.layers = nn.ModuleList(
            FocalLayer(
                FocalBlock(dim, window_size=window, **block),
                upscale=UpScale(dim, out_dim, factor),
            )
            for dim, out_dim, factor, window in zip(
                hidden_dims, out_dims, self.factors, windows, strict=True
            )
        )
        self.refiner = None
        if causal and lookahead_size > 0:
            self.refiner = Refiner(output_dim, 1 + lookahead_size)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of feature frames for a number of codes.

        Arguments
        ---------
        lengths : torch.Tensor
            Codes, int64 [B].

        Returns
        -------
        torch.Tensor
            Feature frames, int64 [B].
        """
        for factor in self.factors:
            lengths = lengths * factor
        return lengths

    def forward(
        self,
        codes: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Decompress.

        Arguments
        ---------
        codes : torch.Tensor
            Codes [B, N, input_dim].
        lengths : torch.Tensor, optional
            Codes, int64 [B].
        state : StreamState, optional
            Causal only: context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Quantized features [B, T', output_dim].
        """
        x = self.in_proj(codes)
        for i, (layer, factor) in enumerate(
            zip(self.layers, self.factors, strict=True)
        ):
            x = layer(x, lengths, scope(state, f"layers.{i}"))
            if lengths is not None:
                lengths = lengths * factor
        return x if self.refiner is None else self.refiner(x, lengths)
