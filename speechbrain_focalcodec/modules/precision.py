"""Keeps phases, windows and filters out of half precision."""

from typing import Any

import torch
from torch import nn

__all__ = ["ExactBuffers", "at_least_float32"]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ExactBuffers(nn.Module):
    """Module whose own buffers stay in float32 in half precision."""

    def _apply(self, fn, *args, **kwargs):
        exact: dict[str, Any] = dict(self._buffers)
        super()._apply(fn, *args, **kwargs)
        buffers: dict[str, Any] = self._buffers
        for name, buffer in buffers.items():
            if buffer.dtype.itemsize < exact[name].dtype.itemsize:
                buffers[name] = at_least_float32(exact[name]).to(buffer.device)
        return self
