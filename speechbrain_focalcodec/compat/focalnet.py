"""The published compressor and decompressor.

Their layers, too, are called as the published ones: ``output, contexts =
layer(input, contexts)``. So a layer may be wrapped in, or replaced by, a module
that is called so.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from speechbrain_focalcodec.compat.part import Part, TensorState
from speechbrain_focalcodec.modules import compressor
from speechbrain_focalcodec.modules.causal import StreamState, scope

__all__ = ["FocalDecoder", "FocalEncoder"]

BLOCK: dict[str, Any] = {
    "focal_window": 14,
    "focal_level": 2,
    "focal_factor": 4,
    "dropout": 0.0,
    "use_post_norm": False,
    "use_layerscale": False,
    "layerscale_init": 1e-4,
    "tanhscale_init": 0.5,
    "normalize_modulator": False,
    "causal": False,
    "window_size": 512,
}


@dataclass
class Contexts:
    """What a layer needs besides its input.

    Arguments
    ---------
    lengths : torch.Tensor, optional
        Frames, int64 [B].
    state : StreamState, optional
        Of a causal layer.
    """

    lengths: torch.Tensor | None
    state: StreamState | None


class Layer(compressor.FocalLayer):
    """A focal block with its down- or up-scaling."""

    def forward(  # type: ignore[override]
        self, input: torch.Tensor, left_contexts: Any = None
    ) -> Any:
        """Scale and mix.

        Arguments
        ---------
        input : torch.Tensor
            Frames [B, T, C].
        left_contexts : optional
            What the call for the chunk before gave; or what the compressor or
            decompressor hands on.

        Returns
        -------
        output : torch.Tensor
            Frames [B, T', C'].
        left_contexts
            For the next chunk.
        """
        if isinstance(left_contexts, Contexts):
            lengths, state = left_contexts.lengths, left_contexts.state
            return super().forward(input, lengths, state), left_contexts
        carried = TensorState(dict(left_contexts or {}))
        state = carried if self.focal_block.modulation.causal else None
        return super().forward(input, None, state), carried.table


def _layers(layers: Any) -> nn.ModuleList:
    """The same layers, to be called as the published ones."""
    return nn.ModuleList(
        Layer(layer.focal_block, layer.downscale, layer.upscale)
        for layer in layers
    )


class FocalEncoder(Part, compressor.FocalEncoder):
    """Features to latents, see
    :class:`~speechbrain_focalcodec.modules.compressor.FocalEncoder`.

    Example
    -------
    >>> compressor = FocalEncoder(8, 5, (8, 6, 4), (2, 1, 1))
    >>> lats, *state = compressor(torch.randn(2, 10, 8))
    >>> lats.shape
    torch.Size([2, 5, 5])
    """

    defaults: ClassVar[dict[str, Any]] = {
        "input_dim": 1024,
        "output_dim": 12,
        "hidden_dims": (1024, 1024, 1024),
        "downscale_factors": (1, 1, 1),
        **BLOCK,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layers = _layers(self.layers)

    @property
    def downsample_factor(self) -> int:
        """Frames a latent."""
        return math.prod(self.config["downscale_factors"])

    @property
    def chunk_size(self) -> int:
        """Frames of one chunk of a stream."""
        return self.downsample_factor

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """See :meth:`compressor.FocalEncoder.output_lengths`.

        Arguments
        ---------
        lengths : torch.Tensor
            Feature frames, int64 [B].

        Returns
        -------
        torch.Tensor
            Latents, int64 [B].
        """
        for factor in self.config["downscale_factors"]:
            lengths = -(-lengths // factor)
        return lengths

    def compute(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None,
        state: TensorState | None,
    ) -> torch.Tensor:
        """See :meth:`Part.compute`.

        Arguments
        ---------
        x, lengths, state
            See :meth:`Part.compute`.

        Returns
        -------
        torch.Tensor
            Latents [B, N, output_dim].
        """
        factors = self.config["downscale_factors"]
        for i, (layer, factor) in enumerate(
            zip(self.layers, factors, strict=True)
        ):
            x, _ = layer(x, Contexts(lengths, scope(state, f"layers.{i}")))
            if lengths is not None:
                lengths = -(-lengths // factor)
        return self.out_proj(x)


class FocalDecoder(Part, compressor.FocalDecoder):
    """Codes to quantized features, see
    :class:`~speechbrain_focalcodec.modules.compressor.FocalDecoder`.

    Example
    -------
    >>> decompressor = FocalDecoder(5, 8, (4, 6, 8), (1, 1, 2))
    >>> qfeats, *state = decompressor(torch.randn(2, 5, 5))
    >>> qfeats.shape
    torch.Size([2, 10, 8])
    """

    defaults: ClassVar[dict[str, Any]] = {
        "input_dim": 12,
        "output_dim": 1024,
        "hidden_dims": (1024, 1024, 1024),
        "upscale_factors": (1, 1, 1),
        **BLOCK,
        "last_window_size": 512,
        "lookahead_size": 3,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layers = _layers(self.layers)

    @property
    def upsample_factor(self) -> int:
        """Frames a code."""
        return math.prod(self.config["upscale_factors"])

    @property
    def chunk_size(self) -> int:
        """Frames of one chunk of a stream."""
        return 1 + self.config["lookahead_size"]

    def compute(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None,
        state: TensorState | None,
    ) -> torch.Tensor:
        """See :meth:`Part.compute`.

        Arguments
        ---------
        x, lengths, state
            See :meth:`Part.compute`.

        Returns
        -------
        torch.Tensor
            Quantized features [B, T', output_dim].
        """
        x = self.in_proj(x.to(self.in_proj.weight.dtype))
        for i, (layer, factor) in enumerate(
            zip(self.layers, self.upscale_factors, strict=True)
        ):
            x, _ = layer(x, Contexts(lengths, scope(state, f"layers.{i}")))
            if lengths is not None:
                lengths = lengths * factor
        return x if self.refiner is None else self.refiner(x, lengths)
