"""Weights for the frozen encoder, from a codec or from a published WavLM."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from speechbrain_focalcodec import checkpoint
from speechbrain_focalcodec.config import CodecConfig
from speechbrain_focalcodec.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["load_encoder", "wavlm_from_transformers"]

Weights = checkpoint.Weights

CONV = "feature_extractor.conv_layers"
LAYER = "encoder.layers"

# transformers' names of WavLM's parts (regular expressions), and ours.
NAMES = (
    (rf"^{CONV}\.(\d+)\.conv\.", r"feature_extractor.layers.\1.conv."),
    (rf"^{CONV}\.(\d+)\.layer_norm\.", r"feature_extractor.layers.\1.norm."),
    (r"^feature_projection\.layer_norm\.", "norm."),
    (r"^feature_projection\.projection\.", "feature_proj."),
    (r"^encoder\.pos_conv_embed\.conv\.", "encoder.positional_embedding.conv."),
    (
        rf"^{LAYER}\.0\.attention\.rel_attn_embed\.",
        "encoder.relative_embedding.",
    ),
    (rf"^({LAYER}\.\d+)\.layer_norm\.", r"\1.attention_norm."),
    (rf"^({LAYER}\.\d+)\.final_layer_norm\.", r"\1.feed_forward_norm."),
    (r"\.feed_forward\.intermediate_dense\.", ".feed_forward.in_proj."),
    (r"\.feed_forward\.output_dense\.", ".feed_forward.out_proj."),
)

# Both spellings of PyTorch's weight norm: magnitude and direction.
POSITION = "encoder.pos_conv_embed.conv"
WEIGHT_NORMS = (
    ("weight_g", "weight_v"),
    (
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ),
)


def wavlm_from_transformers(
    weights: Mapping[str, torch.Tensor], num_layers: int = 6
) -> Weights:
    """Weights of our WavLM encoder from those of `transformers`' WavLM.

    The first layers are kept, the weight norm of the position convolution is
    folded into a plain weight, and the final norm is left out.

    Arguments
    ---------
    weights : dict
        State dict of a `WavLMModel`, as `microsoft/wavlm-large` has it (a
        prefix `wavlm.` is dropped).
    num_layers : int
        Layers to keep.

    Returns
    -------
    dict
        For the `load_state_dict` of
        :class:`~speechbrain_focalcodec.modules.wavlm.WavLM`.

    Raises
    ------
    CheckpointError
        If the weights have no such layers.

    Example
    -------
    >>> wavlm_from_transformers({}, num_layers=6)
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.CheckpointError: the WavLM weights have no \
encoder.layers.5; 6 layers are needed
    """
    kept = {
        name.removeprefix("wavlm."): value for name, value in weights.items()
    }
    if not any(name.startswith(f"{LAYER}.{num_layers - 1}.") for name in kept):
        raise CheckpointError(
            f"the WavLM weights have no {LAYER}.{num_layers - 1}; "
            f"{num_layers} layers are needed"
        )
    for magnitude, direction in WEIGHT_NORMS:
        if f"{POSITION}.{magnitude}" in kept:
            g = kept.pop(f"{POSITION}.{magnitude}")
            v = kept.pop(f"{POSITION}.{direction}")
            norm = v.norm(dim=(0, 1), keepdim=True)
            kept[f"{POSITION}.weight"] = g * v / norm
    renamed: Weights = {}
    for name, value in kept.items():
        layer = re.match(rf"{LAYER}\.(\d+)\.", name)
        beyond = layer is not None and int(layer[1]) >= num_layers
        if beyond or name.startswith(("masked_spec_embed", "encoder.layer_no")):
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return checkpoint.join_qkv(renamed, "the WavLM weights")


def load_encoder(
    codec: "FocalCodec", source: str | Path, revision: str | None = None
) -> None:
    """Give a codec the weights of a frozen encoder.

    Arguments
    ---------
    codec : FocalCodec
        Receives them.
    source : str or Path
        Another codec whose encoder to take (bundled name, local folder or hub
        repository; the releases hold WavLM-large's first six layers), or a
        WavLM in the layout of `transformers`, with `config.json` and
        `model.safetensors`.
    revision : str, optional
        Hub only: commit, tag or branch.

    Raises
    ------
    ConfigError, CheckpointError
        If the source cannot be read or its encoder does not fit.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("tests/parity/offline_50hz")
    >>> load_encoder(codec, "tests/parity/offline_25hz")
    """
    _, folder = checkpoint.resolve_source(source, revision)
    path = folder / checkpoint.CONFIG_FILE
    weights = checkpoint.read_weights(folder / checkpoint.WEIGHTS_FILE)
    if _is_transformers_wavlm(path):
        config = codec.config.encoder_config
        weights = wavlm_from_transformers(
            weights, getattr(config, "num_layers", 0)
        )
    else:
        CodecConfig.parse(json.loads(path.read_text(encoding="utf-8")), path)
        weights = {
            name.removeprefix("encoder."): value
            for name, value in checkpoint.upgrade_names(weights).items()
            if name.startswith("encoder.")
        }
    checkpoint.load_state(codec.encoder, weights, folder)


def _is_transformers_wavlm(path: Path) -> bool:
    """Whether a config.json is that of `transformers`' WavLM."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return isinstance(data, dict) and data.get("model_type") == "wavlm"
