"""The published decoder of the streaming models."""

from typing import Any, ClassVar

from speechbrain_focalcodec.compat.decoder import Decoder
from speechbrain_focalcodec.modules import wavenext

__all__ = ["WaveNeXt"]


class WaveNeXt(Decoder, wavenext.WaveNeXt):
    """Features to waveform, see
    :class:`~speechbrain_focalcodec.modules.wavenext.WaveNeXt`.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "input_dim": 1024,
        "num_layers": 8,
        "dim": 1024,
        "ffn_dim": 2048,
        "kernel_size": 7,
        "layerscale_init": None,
        "hop_length": 480,
        "causal": False,
    }
