"""The published compressor and decompressor.

Their layers are also called like the published ones, ``output, contexts =
layer(input, contexts)``, so a layer may be wrapped or replaced.
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
    """Lengths (int64 [B]) and state of a layer's input."""

    lengths: torch.Tensor | None
    state: StreamState | None


class Layer(compressor.FocalLayer):
    """A focal block with its down- or up-scaling."""

    def forward(  # type: ignore[override]
        self, input: torch.Tensor, left_contexts: Any = None
    ) -> Any:
        """Frames [B, T, C] to frames [B, T', C'], and the contexts.

        `left_contexts` are those of the previous chunk; or a :class:`Contexts`
        from the compressor or decompressor.
        """
        if isinstance(left_contexts, Contexts):
            lengths, state = left_contexts.lengths, left_contexts.state
            return super().forward(input, lengths, state), left_contexts
        carried = TensorState(dict(left_contexts or {}))
        state = carried if self.focal_block.modulation.causal else None
        return super().forward(input, None, state), carried.table


def _layers(layers: Any) -> nn.ModuleList:
    """The same layers with the published interface."""
    return nn.ModuleList(
        Layer(layer.focal_block, layer.downscale, layer.upscale)
        for layer in layers
    )


class FocalEncoder(Part, compressor.FocalEncoder):
    """Features to latents, see
    :class:`~speechbrain_focalcodec.modules.compressor.FocalEncoder`.
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
        """Frames per latent."""
        return math.prod(self.config["downscale_factors"])

    @property
    def chunk_size(self) -> int:
        """Frames of one chunk of a stream."""
        return self.downsample_factor

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of latents for numbers of frames, int64 [B]."""
        for factor in self.config["downscale_factors"]:
            lengths = -(-lengths // factor)
        return lengths

    def compute(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None,
        state: TensorState | None,
    ) -> torch.Tensor:
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
        """Frames per code."""
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
        x = self.in_proj(x.to(self.in_proj.weight.dtype))
        for i, (layer, factor) in enumerate(
            zip(self.layers, self.upscale_factors, strict=True)
        ):
            x, _ = layer(x, Contexts(lengths, scope(state, f"layers.{i}")))
            if lengths is not None:
                lengths = lengths * factor
        return x if self.refiner is None else self.refiner(x, lengths)
