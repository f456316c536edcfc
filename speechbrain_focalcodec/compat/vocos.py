"""The published decoder of the offline models."""

from typing import Any, ClassVar

from speechbrain_focalcodec.compat.decoder import Decoder
from speechbrain_focalcodec.modules import vocos

__all__ = ["Vocos"]


class Vocos(Decoder, vocos.Vocos):
    """Features to waveform, see
    :class:`~speechbrain_focalcodec.modules.vocos.Vocos`.

    Example
    -------
    >>> import torch
    >>> decoder = Vocos(input_dim=8, num_layers=2, dim=16, ffn_dim=32)
    >>> sig, *state = decoder(torch.randn(2, 10, 8))
    >>> sig.shape
    torch.Size([2, 3200])
    """

    defaults: ClassVar[dict[str, Any]] = {
        "input_dim": 1024,
        "num_layers": 8,
        "dim": 512,
        "ffn_dim": 1536,
        "kernel_size": 7,
        "layerscale_init": None,
        "n_fft": 1024,
        "hop_length": 320,
        "causal": False,
        "fade": 0,  # not published
    }
