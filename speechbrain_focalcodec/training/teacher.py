"""The teacher of a streaming encoder: the same encoder with full context.

FocalCodec-Stream, section 2: the causal encoder has the shape of WavLM, and
learns to give, from the past alone, what WavLM gives with full context.
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
    """Whether a codec's encoder learns from a full-context one.

    Arguments
    ---------
    codec : FocalCodec
        The codec.

    Returns
    -------
    bool
        True for a causal WavLM; log-mel features need no teacher.

    Example
    -------
    >>> is_student(FocalCodec.from_pretrained("tests/parity/causal_50hz"))
    True
    """
    return isinstance(codec.encoder, WavLM) and codec.encoder.causal


def full_context_codec(
    codec: FocalCodec, source: str | Path | None
) -> FocalCodec:
    """The frozen teacher of a causal encoder.

    Arguments
    ---------
    codec : FocalCodec
        With a causal WavLM.
    source : str or Path
        Where the teacher's weights come from: an offline codec, or a WavLM in
        the layout of `transformers`; see
        `wavlm_import.load_encoder`.

    Returns
    -------
    FocalCodec
        Its encoder is a WavLM with full context, in eval mode; the other
        parts are not to be used.

    Raises
    ------
    ConfigError, CheckpointError
        If the source is missing or does not fit.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> full_context_codec(codec, "tests/parity/offline_50hz").encoder.causal
    False
    """
    config = codec.config.model_dump()
    encoder = {**config["encoder_config"], "causal": False}
    # Only the encoder is used: the other parts are as small as they can be.
    offline = FocalCodec.from_config(
        CodecConfig.parse({"encoder_config": encoder, **_tiny(encoder["dim"])})
    )
    load_frozen_encoder(offline, source)
    return offline.requires_grad_(False).eval()


def load_frozen_encoder(codec: FocalCodec, source: str | Path | None) -> None:
    """Load the encoder that a stage does not train.

    Arguments
    ---------
    codec : FocalCodec
        Receives it.
    source : str or Path
        The output folder of an encoder's training, or what
        `wavlm_import.load_encoder` takes.

    Raises
    ------
    ConfigError, CheckpointError
        If the source cannot be read or does not fit.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/offline_50hz")
    >>> load_frozen_encoder(codec, "tests/parity/offline_25hz")
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
    """Parts of a codec around features of a dimension."""
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
    """What an encoder's position embedding sees.

    Arguments
    ---------
    encoder : WavLM
        The encoder.
    sig : torch.Tensor
        Waveform [B, T].
    lengths : torch.Tensor
        Samples, int64 [B].

    Returns
    -------
    x : torch.Tensor
        Frames [B, N, dim], zero beyond each length.
    frames : torch.Tensor
        Their number, int64 [B].
    """
    x = encoder.feature_extractor(sig, lengths)
    x = encoder.feature_proj(encoder.norm(x))
    frames = encoder.output_lengths(lengths)
    return zero_beyond(x, frames), frames


class LayerOutputs:
    """Collects what each transformer layer of an encoder gives.

    Hooks, so that the encoder is called as it always is: within DDP's wrapper
    too.

    Arguments
    ---------
    encoder : WavLM
        The encoder, without wrapper.

    Example
    -------
    >>> encoder = WavLM(num_layers=2, dim=32, ffn_dim=64, num_heads=4)
    >>> with LayerOutputs(encoder) as outputs:
    ...     x = encoder(torch.randn(1, 16000))
    >>> [y.shape for y in outputs]
    [torch.Size([1, 49, 32]), torch.Size([1, 49, 32])]
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
