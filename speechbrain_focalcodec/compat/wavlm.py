"""The published encoder."""

from typing import Any, ClassVar

from speechbrain_focalcodec.compat.part import Part
from speechbrain_focalcodec.modules import wavlm

__all__ = ["WavLM"]


class WavLM(Part, wavlm.WavLM):
    """Waveform to features, see
    :class:`~speechbrain_focalcodec.modules.wavlm.WavLM`.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "hidden_dims": (512,) * 7,
        "kernel_sizes": (10, 3, 3, 3, 3, 2, 2),
        "strides": (5, 2, 2, 2, 2, 2, 2),
        "num_layers": 6,
        "dim": 1024,
        "ffn_dim": 4096,
        "num_heads": 16,
        "num_buckets": 320,
        "max_distance": 800,
        "max_cached_steps": 2048,
        "dropout": 0.0,
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "causal": False,
        "window_size": 512,
        "lookahead_size": 3,
        "use_flex_attention": False,
    }

    @property
    def downsample_factor(self) -> int:
        """Samples per frame."""
        return self.hop_length

    @property
    def chunk_size(self) -> int:
        """Samples of one chunk of a stream."""
        return self.hop_length * (1 + self.config["lookahead_size"])
