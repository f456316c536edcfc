"""Compressor and decompressor: focal blocks with down- and up-scaling.

FocalCodec, sections 3.1 and 3.3; the causal variants are FocalCodec-Stream's.
Names of submodules are those of the published weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import StreamState, scope
from speechbrain_focalcodec.modules.focal import FocalBlock
from speechbrain_focalcodec.modules.layouts import Linear, then_gelu
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.modules.part import Compressor, Decompressor
from speechbrain_focalcodec.modules.scaling import DownScale, UpScale

__all__ = ["FocalDecoder", "FocalEncoder"]


class Refiner(nn.Module):
    """Refines each chunk of `chunk` feature frames as a whole.

    FocalCodec-Stream, section 2.3: the frames of a chunk are decoded together,
    so the last one may inform the first without added latency.
    """

    def __init__(self, dim: int, chunk: int):
        super().__init__()
        self.chunk = chunk
        self.in_proj = Linear(chunk * dim, chunk * dim)
        self.out_proj = Linear(chunk * dim, chunk * dim)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features [B, T, dim] to features [B, T, dim].

        A partial chunk at the end is filled with zeros.
        """
        batch, steps, dim = x.shape
        y = zero_beyond(x, lengths)
        y = F.pad(y, (0, 0, 0, -steps % self.chunk))
        y = y.reshape(batch, -1, self.chunk * dim)
        y = self.out_proj(then_gelu(self.in_proj, y))
        return x + y.reshape(batch, -1, dim)[:, :steps]


class FocalLayer(nn.Module):
    """A focal block after down-scaling or before up-scaling."""

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

    @property
    def reach(self) -> tuple[int, int]:
        """Frames of the block seen before and after, without its mean."""
        before, after = self.focal_block.modulation.reach
        if self.downscale is not None:
            before += self.downscale.reach
        return before, after

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of frames after down-scaling, int64 [B]."""
        if self.downscale is None:
            return lengths
        return self.downscale.output_lengths(lengths)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Frames [B, T, C] to frames [B, T', C']."""
        if self.downscale is not None:
            x = self.downscale(x, lengths, scope(state, "downscale"))
            if lengths is not None:
                lengths = self.output_lengths(lengths)
        x = self.focal_block(x, lengths, scope(state, "focal_block"))
        return x if self.upscale is None else self.upscale(x)


class FocalEncoder(Compressor):
    """Compressor: features to latents that are not yet on the sphere.

    Arguments
    ---------
    input_dim, output_dim : int
        Dimensions of features and latents.
    hidden_dims : sequence of int
        Channels of the blocks.
    downscale_factors : sequence of int
        Factor before each block.
    causal : bool
        Whether the blocks look to the left only.
    window_size : int
        Causal only: taps of the widest convolution.
    **block : dict
        Options of :class:`FocalBlock`.
    """

    layers: Any

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
        self.input_dim, self.output_dim = input_dim, output_dim
        self.downscale_factors = tuple(downscale_factors)
        self.causal = causal
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

    def forward(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Features [B, T, input_dim] to latents [B, N, output_dim]."""
        x = feats
        for i, layer in enumerate(self.layers):
            x = layer(x, lengths, scope(state, f"layers.{i}"))
            if lengths is not None:
                lengths = layer.output_lengths(lengths)
        return self.out_proj(x)


class FocalDecoder(Decompressor):
    """Decompressor: codes to quantized features.

    Arguments
    ---------
    input_dim, output_dim : int
        Dimensions of codes and features.
    hidden_dims : sequence of int
        Channels of the blocks.
    upscale_factors : sequence of int
        Factor after each block.
    causal : bool
        Whether the blocks look to the left only.
    window_size, last_window_size : int
        Causal only: taps of the widest convolution, in all blocks but the
        last and in the last.
    lookahead_size : int
        Causal only: the refiner sees chunks of 1 + lookahead_size frames; 0
        leaves the refiner out.
    **block : dict
        Options of :class:`FocalBlock`.
    """

    layers: Any

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
        self.input_dim, self.output_dim = input_dim, output_dim
        self.upscale_factors = tuple(upscale_factors)
        self.causal = causal
        self.chunk = 1 + lookahead_size if causal else 1
        block = {"causal": causal, **block}
        windows = [window_size] * (len(hidden_dims) - 1) + [last_window_size]
        out_dims = [*hidden_dims[1:], output_dim]
        self.in_proj = nn.Linear(input_dim, hidden_dims[0])
        self.layers = nn.ModuleList(
            FocalLayer(
                FocalBlock(dim, window_size=window, **block),
                upscale=UpScale(dim, out_dim, factor),
            )
            for dim, out_dim, factor, window in zip(
                hidden_dims, out_dims, upscale_factors, windows, strict=True
            )
        )
        self.refiner = None
        if causal and lookahead_size > 0:
            self.refiner = Refiner(output_dim, self.chunk)

    def remove_refiner(self) -> None:
        """Remove the refiner, and with it the lookahead, if there is one."""
        if self.refiner is not None:
            self.refiner = None
            self.chunk = 1
            self.options = {**self.options, "lookahead_size": 0}

    def project(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, N, d] to the first block's channels."""
        return self.in_proj(codes.to(self.in_proj.weight.dtype))

    def forward(
        self,
        codes: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Codes [B, N, input_dim] to quantized features [B, T', output_dim]."""
        x = self.project(codes)
        for i, (layer, factor) in enumerate(
            zip(self.layers, self.upscale_factors, strict=True)
        ):
            x = layer(x, lengths, scope(state, f"layers.{i}"))
            if lengths is not None:
                lengths = lengths * factor
        return x if self.refiner is None else self.refiner(x, lengths)
