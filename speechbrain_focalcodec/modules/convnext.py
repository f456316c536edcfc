"""The backbone that the decoders Vocos and WaveNeXt share."""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import (
    StreamState,
    extend_left,
    scope,
)
from speechbrain_focalcodec.modules.layouts import (
    Linear,
    StridedConv,
    depthwise_conv,
    then_gelu,
)
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.modules.part import Decoder

__all__ = ["ConvNeXtBackbone", "ConvNeXtDecoder"]

NORM_EPS = 1e-6


class TimeConv(StridedConv):
    """Convolution over [B, T, C] that keeps T and respects lengths.

    Offline, each utterance is padded with zeros on both sides. Causal, with
    context on the left only: copies of the first frame (`replicate`) or zeros.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int,
        groups: int = 1,
        causal: bool = False,
        replicate: bool = True,
    ):
        super().__init__(in_dim, out_dim, kernel_size, groups=groups)
        self.causal = causal
        self.replicate = replicate

    @property
    def reach(self) -> tuple[int, int]:
        """Frames seen to the left and to the right."""
        taps = self.kernel_size[0] - 1
        return (taps, 0) if self.causal else (taps // 2, taps - taps // 2)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Frames [B, T, in_dim] to frames [B, T, out_dim]."""
        taps = self.kernel_size[0] - 1
        if self.causal:
            x = extend_left(x, taps, state, self.replicate)
        else:
            x = zero_beyond(x, lengths)
            if self.groups == self.in_channels > 1 and taps % 2 == 0:
                return depthwise_conv(x, self.weight, self.bias, taps // 2)
            x = F.pad(x, (0, 0, taps // 2, taps - taps // 2))
        if self.groups == self.in_channels > 1:
            return depthwise_conv(x, self.weight, self.bias)
        return super().forward(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm and a two-layer network, residual."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        kernel_size: int,
        layerscale_init: float,
        causal: bool = False,
        replicate: bool = True,
    ):
        super().__init__()
        self.dwconv = TimeConv(
            dim, dim, kernel_size, dim, causal=causal, replicate=replicate
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pwconv1 = Linear(dim, ffn_dim)
        self.pwconv2 = Linear(ffn_dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layerscale_init))

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Frames [B, T, dim] to frames [B, T, dim]."""
        y = self.norm(self.dwconv(x, lengths, scope(state, "dwconv")))
        return torch.addcmul(
            x, self.gamma, self.pwconv2(then_gelu(self.pwconv1, y))
        )


class ConvNeXtBackbone(nn.Module):
    """Features to hidden frames of the decoder.

    Arguments
    ---------
    input_dim : int
        Feature dimension.
    num_layers : int
        Number of blocks.
    dim, ffn_dim : int
        Channels of the blocks, outside and inside.
    kernel_size : int
        Taps of all convolutions.
    layerscale_init : float, optional
        Initial scale of the blocks; 1 / num_layers by default.
    causal, replicate : bool
        See :class:`TimeConv`.
    """

    def __init__(
        self,
        input_dim: int,
        num_layers: int,
        dim: int,
        ffn_dim: int,
        kernel_size: int = 7,
        layerscale_init: float | None = None,
        causal: bool = False,
        replicate: bool = True,
    ):
        super().__init__()
        if layerscale_init is None:
            layerscale_init = 1 / num_layers
        self.embedding = TimeConv(
            input_dim, dim, kernel_size, causal=causal, replicate=replicate
        )
        self.input_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            ConvNeXtBlock(
                dim, ffn_dim, kernel_size, layerscale_init, causal, replicate
            )
            for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Features [B, T, input_dim] to hidden frames [B, T, dim]."""
        x = self.embedding(x, lengths, scope(state, "embedding"))
        x = self.input_norm(x.to(self.input_norm.weight.dtype))
        for i, layer in enumerate(self.layers):
            x = layer(x, lengths, scope(state, f"layers.{i}"))
        return self.output_norm(x)


class ConvNeXtDecoder(Decoder):
    """Features to waveform: a ConvNeXt backbone and a head.

    Arguments
    ---------
    head : nn.Module
        Hidden frames [B, T, dim], lengths (int64 [B] or None) and state to a
        waveform [B, T * hop_length]; has a `reach` like this class.
    hop_length : int
        Samples per frame.
    causal : bool
        Whether the model looks to the left only.
    **backbone : dict
        Options of :class:`ConvNeXtBackbone`.
    """

    def __init__(
        self, head: nn.Module, hop_length: int, causal: bool = False, **backbone
    ):
        super().__init__()
        self.input_dim = backbone["input_dim"]
        self.hop_length = hop_length
        self.causal = causal
        self.backbone = ConvNeXtBackbone(causal=causal, **backbone)
        self.head = head

    @property
    def reach(self) -> tuple[int, int]:  # type: ignore[override]
        parts: list = [*self.backbone.modules(), self.head]
        reaches = [part.reach for part in parts if hasattr(part, "reach")]
        return sum(x for x, _ in reaches), sum(x for _, x in reaches)

    def forward(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Features [B, T, input_dim] to waveform [B, T * hop_length]."""
        x = self.backbone(feats, lengths, scope(state, "backbone"))
        return self.head(x, lengths, scope(state, "head"))
