"""The published decoder of the offline models."""

from typing import Any, ClassVar

from speechbrain_focalcodec.compat.decoder import Decoder
from speechbrain_focalcodec.modules import vocos

__all__ = ["Vocos"]


class Vocos(Decoder, vocos.Vocos):
    """Features to waveform, see
    :class:`~speechbrain_focalcodec.modules.vocos.Vocos`.
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
