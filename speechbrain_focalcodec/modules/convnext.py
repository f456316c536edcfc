"""What the decoders Vocos and WaveNeXt share: all but the head."""

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
    """Convolution over [B, T, C] that keeps T and heeds lengths.

    Offline: zeros on both sides of each utterance. Causal: context on the
    left only.

    Arguments
    ---------
    in_dim, out_dim : int
        Channels.
    kernel_size : int
        Taps.
    groups : int
        Groups of channels.
    causal : bool
        Whether to look to the left only.
    replicate : bool
        Causal only: start with copies of the first frame; else with zeros.

    Example
    -------
    >>> TimeConv(4, 6, 7)(torch.randn(2, 10, 4)).shape
    torch.Size([2, 10, 6])
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
        """Convolve.

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
            Frames [B, T, out_dim].
        """
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
    """Depthwise convolution, norm and a two-layer network, residual.

    Arguments
    ---------
    dim, ffn_dim : int
        Channels outside and inside.
    kernel_size : int
        Taps of the depthwise convolution.
    layerscale_init : float
        First value of the scale of the residual branch.
    causal, replicate : bool
        See :class:`TimeConv`.

    Example
    -------
    >>> ConvNeXtBlock(4, 8, 7, 0.125)(torch.randn(2, 10, 4)).shape
    torch.Size([2, 10, 4])
    """

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
        """Apply the block to frames [B, T, dim].

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, dim].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Frames [B, T, dim].
        """
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
        First value of the blocks' scale; 1 / num_layers by default.
    causal, replicate : bool
        See :class:`TimeConv`.

    Example
    -------
    >>> ConvNeXtBackbone(4, 2, 8, 16)(torch.randn(2, 10, 4)).shape
    torch.Size([2, 10, 8])
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
        """Compute hidden frames.

        Arguments
        ---------
        x : torch.Tensor
            Features [B, T, input_dim].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Context of earlier chunks.

        Returns
        -------
        torch.Tensor
            Hidden frames [B, T, dim].
        """
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
        From hidden frames [B, T, dim], lengths (int64 [B] or None) and a state
        to a waveform [B, T * hop_length]; with a `reach` as below.
    hop_length : int
        Samples a frame.
    causal : bool
        Whether to look to the left only.
    **backbone : dict
        Options of :class:`ConvNeXtBackbone`.

    Example
    -------
    >>> from speechbrain_focalcodec.modules.wavenext import LinearHead
    >>> decoder = ConvNeXtDecoder(
    ...     LinearHead(8, 480), 480, input_dim=4, num_layers=2, dim=8, ffn_dim=8
    ... )
    >>> decoder(torch.randn(2, 10, 4)).shape
    torch.Size([2, 4800])
    """

    def __init__(
        self,
        head: nn.Module,
        hop_length: int,
        causal: bool = False,
        **backbone,
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
        """Synthesise.

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
            Waveform [B, T * hop_length].
        """
        x = self.backbone(feats, lengths, scope(state, "backbone"))
        return self.head(x, lengths, scope(state, "head"))
