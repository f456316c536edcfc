"""WaveNeXt decoder (Okamoto et al., 2023): features straight to samples."""

import torch
from torch import nn

from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.modules.convnext import ConvNeXtDecoder
from speechbrain_focalcodec.modules.precision import at_least_float32

__all__ = ["WaveNeXt"]


class LinearHead(nn.Module):
    """Hidden frames to `hop_length` samples each."""

    reach = (0, 0)  # frames do not overlap

    def __init__(self, dim: int, hop_length: int):
        super().__init__()
        self.proj = nn.Linear(dim, hop_length, bias=True)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Hidden frames [B, T, dim] to waveform [B, T * hop_length]."""
        if torch.is_grad_enabled():
            # bfloat16 would add noise that hides quiet bands in training.
            with torch.autocast(x.device.type, enabled=False):
                x = self.proj(x.to(self.proj.weight.dtype))
        else:
            x = self.proj(x)
        return at_least_float32(x).clamp(-1.0, 1.0).flatten(1)


class WaveNeXt(ConvNeXtDecoder):
    """Features to waveform, without an FFT; causal in the releases.

    Arguments
    ---------
    input_dim : int
        Feature dimension.
    num_layers, dim, ffn_dim, kernel_size, layerscale_init
        See :class:`~speechbrain_focalcodec.modules.convnext.ConvNeXtBackbone`.
    hop_length : int
        Samples per frame.
    causal : bool
        Whether the model looks to the left only; it starts from zeros.
    """

    def __init__(
        self,
        input_dim: int = 1024,
        num_layers: int = 8,
        dim: int = 1024,
        ffn_dim: int = 2048,
        kernel_size: int = 7,
        layerscale_init: float | None = None,
        hop_length: int = 480,
        causal: bool = False,
    ):
        super().__init__(
            LinearHead(dim, hop_length),
            hop_length,
            causal,
            input_dim=input_dim,
            num_layers=num_layers,
            dim=dim,
            ffn_dim=ffn_dim,
            kernel_size=kernel_size,
            layerscale_init=layerscale_init,
            replicate=False,
        )
