"""Focal modulation: the block of the compressor and the decompressor.

Focal modulation (Yang et al., 2022) replaces attention by depthwise
convolutions of growing width and a global mean, gated per frame. Names of
submodules are those of the published weights.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import (
    StreamState,
    extend_left,
    scope,
)
from speechbrain_focalcodec.modules.derived import Derived
from speechbrain_focalcodec.modules.feed_forward import FeedForward
from speechbrain_focalcodec.modules.layouts import (
    Linear,
    PointwiseConv,
    depthwise_conv,
    pack_depthwise,
)
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.modules.means import TimeMeans

__all__ = ["FocalBlock", "FocalModulation"]


class ScaledTanh(nn.Module):
    """tanh(alpha x) with one alpha: the norm of the causal blocks."""

    def __init__(self, init: float = 0.5):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), init))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.alpha * x)


def _norm(dim: int, causal: bool, init: float) -> nn.Module:
    """The norm of a focal block."""
    return ScaledTanh(init) if causal else nn.LayerNorm(dim)


def _add(
    x: torch.Tensor, gamma: torch.Tensor | float, branch: torch.Tensor
) -> torch.Tensor:
    """Residual plus a scaled branch."""
    if isinstance(gamma, torch.Tensor):
        return torch.addcmul(x, gamma, branch)
    return x + gamma * branch if gamma != 1.0 else x + branch


class FocalModulation(nn.Module):
    """Mix frames by gated convolutions of growing width and a mean.

    Arguments
    ---------
    dim : int
        Channels.
    focal_window, focal_level, focal_factor : int
        The kernel has ``focal_window + focal_factor * k`` taps at level k.
    use_norm : bool
        Whether a norm precedes the output projection.
    normalize_modulator : bool
        Whether to divide the sum of the levels by their number.
    causal : bool
        Whether to look to the left only; a convolution replaces the mean.
    window_size : int
        Causal only: taps of that convolution.
    tanhscale_init : float
        Causal only: initial alpha of the norm.
    """

    layers: Any

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
        tanhscale_init: float = 0.5,
    ):
        super().__init__()
        self.dim = dim
        self.focal_level = focal_level
        self.normalize_modulator = normalize_modulator
        self.causal = causal
        kernels = [focal_window + focal_factor * k for k in range(focal_level)]
        if causal:
            kernels.append(window_size)
        self.in_proj = Linear(dim, 2 * dim + focal_level + 1)
        # The one-element Sequential keeps the published names.
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(dim, dim, kernel, groups=dim))
            for kernel in kernels
        )
        self.packed = Derived(pack_depthwise)
        self.context_proj = PointwiseConv(dim, dim)
        self.norm: nn.Module = nn.Identity()
        if use_norm:
            self.norm = _norm(dim, causal, tanhscale_init)
        self.out_proj = Linear(dim, dim)

    @property
    def reach(self) -> tuple[int, int]:
        """Frames that the convolutions see to the left and to the right."""
        taps = [layer[0].kernel_size[0] - 1 for layer in self.layers]
        if self.causal:
            return sum(taps), 0
        return sum(k // 2 for k in taps), sum(k - k // 2 for k in taps)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Frames [B, T, dim] to frames [B, T, dim].

        `state` is the stream's; or, offline, the :class:`TimeMeans` of a window
        of a longer utterance.
        """
        query, context, gates = (
            self.in_proj(x)
            .to(x.dtype)
            .split([self.dim, self.dim, self.focal_level + 1], dim=-1)
        )
        total = torch.zeros_like(query)
        for k, layer in enumerate(self.layers):
            kept = scope(state, f"layers.{k}")
            context = F.gelu(self._convolve(layer[0], context, lengths, kept))
            total = torch.addcmul(total, context, gates[..., k : k + 1])
        if not self.causal:
            mean = F.gelu(self._mean(context, lengths, state))
            total = torch.addcmul(total, mean, gates[..., self.focal_level :])
        if self.normalize_modulator:
            total = total.div(self.focal_level + 1)
        modulator = self.context_proj(total)
        return self.out_proj(self.norm(query * modulator))

    def _convolve(
        self,
        conv: nn.Conv1d,
        context: torch.Tensor,
        lengths: torch.Tensor | None,
        state: StreamState | None,
    ) -> torch.Tensor:
        """Depthwise convolution of [B, T, dim] that keeps T."""
        taps = conv.kernel_size[0] - 1
        if self.causal:
            context = extend_left(context, taps, state)
            # The window's convolution, in a stream.
            packed = self.packed if conv is self.layers[-1][0] else None
            return depthwise_conv(
                context, conv.weight, conv.bias, packed=packed
            )
        context = zero_beyond(context, lengths, in_place=True)
        if taps % 2:  # an even kernel reaches one further to the right
            context = F.pad(context, (0, 0, 0, 1))
        return depthwise_conv(context, conv.weight, conv.bias, taps // 2)

    def _mean(
        self,
        context: torch.Tensor,
        lengths: torch.Tensor | None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Mean of [B, T, dim] over each utterance's own frames."""
        if isinstance(state, TimeMeans):
            return state.mean(context)
        if lengths is None:
            return context.mean(dim=1, keepdim=True)
        # In float32, as a mean is computed: a sum would overflow half floats.
        total = zero_beyond(context, lengths, in_place=True).sum(
            dim=1, keepdim=True, dtype=torch.float32
        )
        return (total / lengths[:, None, None]).to(context.dtype)


class FocalBlock(nn.Module):
    """Focal modulation and a feed-forward network, both residual.

    Arguments
    ---------
    dim : int
        Channels.
    focal_window, focal_level, focal_factor, normalize_modulator, causal,
    window_size, tanhscale_init
        See :class:`FocalModulation`.
    dropout : float
        Dropout of the feed-forward network.
    use_post_norm : bool
        Whether the norms come after the branches instead of before.
    use_layerscale : bool
        Whether the branches are scaled by a learned vector.
    layerscale_init : float
        Initial value of that vector.
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
        tanhscale_init: float = 0.5,
    ):
        super().__init__()
        self.use_post_norm = use_post_norm
        self.modulation_norm = _norm(dim, causal, tanhscale_init)
        self.modulation = FocalModulation(
            dim,
            focal_window,
            focal_level,
            focal_factor,
            use_post_norm,
            normalize_modulator,
            causal,
            window_size,
            tanhscale_init,
        )
        self.feed_forward_norm = _norm(dim, causal, tanhscale_init)
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
        """Frames [B, T, dim] to frames; `state` as in
        :meth:`FocalModulation.forward`.
        """
        state = scope(state, "modulation")
        if self.use_post_norm:
            y = self.modulation_norm(self.modulation(x, lengths, state))
            x = _add(x, self.modulation_gamma, y)
            y = self.feed_forward_norm(self.feed_forward(x))
        else:
            y = self.modulation(self.modulation_norm(x), lengths, state)
            x = _add(x, self.modulation_gamma, y)
            y = self.feed_forward(self.feed_forward_norm(x))
        return _add(x, self.feed_forward_gamma, y)
