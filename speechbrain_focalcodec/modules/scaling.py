"""Down- and up-scaling of frames, with Snake activations.

Names of submodules are those of the published weights.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import StreamState, extend_left
from speechbrain_focalcodec.modules.derived import Derived
from speechbrain_focalcodec.modules.layouts import (
    StridedConv,
    pack,
    packed_product,
    use_packed,
)
from speechbrain_focalcodec.modules.masking import zero_beyond

__all__ = ["DownScale", "UpScale"]


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha with one alpha per channel (Ziyin et al.)."""

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha = self.alpha[:, 0]
        return torch.addcdiv(x, (alpha * x).sin().square(), alpha + 1e-9)


class DownScale(nn.Module):
    """Strided convolution and Snake: T frames to ceil(T / factor).

    Kernel and stride are `factor`. Causal, the input is padded on the left.
    """

    def __init__(
        self, in_dim: int, out_dim: int, factor: int, causal: bool = False
    ):
        super().__init__()
        self.factor = factor
        self.causal = causal
        self.downscale = StridedConv(in_dim, out_dim, factor, factor)
        self.activation = Snake(out_dim)

    @property
    def reach(self) -> int:
        """Down-scaled frames that a frame sees before its own."""
        return int(self.causal and self.factor > 1)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of frames after down-scaling, int64 [B]."""
        return (lengths + self.factor - 1) // self.factor

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Frames [B, T, in_dim] to frames [B, ceil(T / factor), out_dim]."""
        if self.causal:
            x = extend_left(x, self.factor - 1, state)
        else:
            x = zero_beyond(x, lengths)
            if x.shape[1] % self.factor:
                x = F.pad(x, (0, 0, 0, -x.shape[1] % self.factor))
        return self.activation(self.downscale(x))


def _as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Transposed convolution [in, out, factor] to [factor * out, in]."""
    return weight.permute(2, 1, 0).flatten(0, 1).contiguous()


def _pack_as_matrix(weight: torch.Tensor) -> torch.Tensor:
    return pack(_as_matrix(weight))


class UpScale(nn.Module):
    """Snake and transposed convolution: T frames to T * factor.

    Kernel and stride are `factor`: each frame becomes `factor` frames, which is
    causal.
    """

    def __init__(self, in_dim: int, out_dim: int, factor: int):
        super().__init__()
        self.factor = factor
        self.activation = Snake(in_dim)
        self.upscale = nn.ConvTranspose1d(
            in_dim, out_dim, factor, stride=factor
        )
        self.matrix = Derived(_as_matrix)
        self.packed = Derived(_pack_as_matrix)
        # A layer in 8 bits to use instead: see acceleration.py.
        self.quantized: nn.Module | None = None

    @property
    def bias(self) -> torch.Tensor:
        """Bias [factor * out] of the same linear layer."""
        bias: Any = self.upscale.bias
        return bias.repeat(self.factor)

    def as_matrix(self) -> torch.Tensor:
        """Weight [factor * out, in] of the same linear layer."""
        return _as_matrix(self.upscale.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [B, T, in_dim] to frames [B, T * factor, out_dim]."""
        # One matrix product: each frame becomes `factor` frames.
        weight = self.upscale.weight
        y = self.activation(x)
        if self.quantized is not None:
            y = self.quantized(y)
        elif use_packed(y := y.to(weight.dtype), weight):
            y = packed_product(y, self.packed(weight), self.bias)
        else:
            y = F.linear(y, self.matrix(weight), self.bias)
        return y.unflatten(-1, (self.factor, -1)).flatten(1, 2).to(x.dtype)
