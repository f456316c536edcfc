"""Full-context teacher of a streaming encoder.

FocalCodec-Stream, section 2: the causal encoder has the architecture of WavLM
and is trained to output WavLM's features from past context only.
"""

from pathlib import Path

import torch

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.config import CodecConfig
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.modules.wavlm import WavLM
from speechbrain_focalcodec.training.sources import (
    find_sources,
    is_run,
    load_parts,
)
from speechbrain_focalcodec.training.wavlm_import import load_encoder

__all__ = [
    "LayerOutputs",
    "frames_before_position",
    "full_context_codec",
    "is_student",
    "load_frozen_encoder",
]


def is_student(codec: FocalCodec) -> bool:
    """Whether a codec's encoder is a causal WavLM, which needs a teacher."""
    return isinstance(codec.encoder, WavLM) and codec.encoder.causal


def full_context_codec(
    codec: FocalCodec, source: str | Path | None
) -> FocalCodec:
    """Codec with the frozen full-context teacher of a causal encoder.

    Its other parts are minimal and not used. `source` is an argument of
    :func:`load_frozen_encoder`.
    """
    config = codec.config.model_dump()
    encoder = {**config["encoder_config"], "causal": False}

    offline = FocalCodec.from_config(
        CodecConfig.parse({"encoder_config": encoder, **_tiny(encoder["dim"])})
    )
    load_frozen_encoder(offline, source)
    return offline.requires_grad_(False).eval()


def load_frozen_encoder(codec: FocalCodec, source: str | Path | None) -> None:
    """Load the encoder that a stage does not train.

    `source` is the output folder of an encoder's training, or a source of
    `wavlm_import.load_encoder`. ConfigError or CheckpointError if it is None,
    cannot be read or does not fit.
    """
    if source is None:
        raise ConfigError(
            "encoder_source: needed, as where the weights of the frozen "
            "encoder (a streaming model's teacher) come from; or an encoder "
            "in start_from"
        )
    if is_run(source):
        load_parts(codec, find_sources(source), ["encoder"])
    else:
        load_encoder(codec, source)


def _tiny(dim: int) -> dict:
    """Minimal parts of a codec around features of a dimension."""
    sizes = {"hidden_dims": [1]}
    return {
        "compressor_config": {
            "input_dim": dim,
            "downscale_factors": [1],
            **sizes,
        },
        "decompressor_config": {
            "output_dim": dim,
            "upscale_factors": [1],
            **sizes,
        },
        "decoder_config": {
            "input_dim": dim,
            "num_layers": 1,
            "dim": 1,
            "ffn_dim": 1,
        },
    }


def frames_before_position(
    encoder: WavLM, sig: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input [B, N, dim] of the position embedding; frames, int64 [B]."""
    x = encoder.feature_extractor(sig, lengths)
    x = encoder.feature_proj(encoder.norm(x))
    frames = encoder.output_lengths(lengths)
    return zero_beyond(x, frames), frames


class LayerOutputs:
    """Collects the outputs [B, N, dim] of an encoder's transformer layers.

    A context manager with hooks, so that the encoder can be called through
    DDP's wrapper.
    """

    def __init__(self, encoder: WavLM):
        self._layers = encoder.encoder.layers
        self._outputs: list[torch.Tensor] = []

    def __enter__(self) -> list[torch.Tensor]:
        self._outputs.clear()
        self._hooks = [
            layer.register_forward_hook(
                lambda module, args, output: self._outputs.append(output)
            )
            for layer in self._layers
        ]
        return self._outputs

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()
