"""The feed-forward network of transformer layers and focal blocks."""

import torch
from torch import nn

from speechbrain_focalcodec.modules.layouts import Linear, then_gelu

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """Two linear layers with GELU and dropout between."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.in_proj = Linear(dim, hidden_dim)
        self.out_proj = Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [..., dim] to frames [..., dim]."""
        return self.out_proj(self.dropout(then_gelu(self.in_proj, x)))
