"""What must not be computed in half precision: phases, windows, filters."""

import torch
from torch import nn

__all__ = ["ExactBuffers", "at_least_float32"]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Turn half precision into float32; float64 stays.

    Arguments
    ---------
    x : torch.Tensor
        Floats.

    Returns
    -------
    torch.Tensor
        The same in float32 or float64.

    Example
    -------
    >>> at_least_float32(torch.zeros(1).half()).dtype
    torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ExactBuffers(nn.Module):
    """Module whose own buffers stay in float32 when it is made half precision.

    Example
    -------
    >>> module = ExactBuffers()
    >>> module.register_buffer("window", torch.hann_window(9))
    >>> module.half().window.dtype
    torch.float32
    """

    def _apply(self, fn, *args, **kwargs):
        exact = dict(self._buffers)
        super()._apply(fn, *args, **kwargs)
        for name, buffer in self._buffers.items():
            if buffer.dtype.itemsize < exact[name].dtype.itemsize:
                self._buffers[name] = at_least_float32(exact[name]).to(
                    buffer.device
                )
        return self
