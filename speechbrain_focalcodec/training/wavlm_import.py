"""Loads the frozen encoder from a codec or from a published WavLM."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speechbrain_focalcodec import checkpoint, model_files
from speechbrain_focalcodec.config import CodecConfig, read_json
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.modules import weight_names
from speechbrain_focalcodec.modules.part_configs import WavLMConfig

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

# Weights that the first layers do not need.
LEFT_OUT = ("masked_spec_embed", "encoder.layer_norm.")

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

    Keeps the first layers, folds the weight norm of the position convolution
    and drops the final norm. `weights` is the state dict of a `WavLMModel`, as
    of `microsoft/wavlm-large`, or of a model with a head. CheckpointError if
    layers are missing or the weights are not those of a WavLM.
    """
    kept = {
        name.removeprefix("wavlm."): value
        for name, value in weights.items()
        if name.startswith("wavlm.")
    } or dict(weights)
    if not any(name.startswith(f"{LAYER}.{num_layers - 1}.") for name in kept):
        raise CheckpointError(
            f"the WavLM weights have no {LAYER}.{num_layers - 1}; "
            f"{num_layers} layers are needed"
        )
    for names in WEIGHT_NORMS:
        g, v = (kept.pop(f"{POSITION}.{name}", None) for name in names)
        if g is None and v is None:
            continue
        if (
            g is None
            or v is None
            or v.ndim != 3
            or g.shape != (1, 1, v.shape[2])
        ):
            raise CheckpointError(
                f"the WavLM weights have no {POSITION}.{names[0]} and "
                f"{POSITION}.{names[1]} that fit each other"
            )
        norm = v.float().norm(dim=(0, 1), keepdim=True)
        kept[f"{POSITION}.weight"] = g * v / norm
    renamed: Weights = {}
    for name, value in kept.items():
        layer = re.match(rf"{LAYER}\.(\d+)\.", name)
        beyond = layer is not None and int(layer[1]) >= num_layers
        if beyond or name.startswith(LEFT_OUT):
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return weight_names.join_qkv(renamed, "the WavLM weights")


def load_encoder(
    codec: "FocalCodec", source: str | Path, revision: str | None = None
) -> None:
    """Load the weights of a frozen encoder into a codec.

    Arguments
    ---------
    codec : FocalCodec
        Receives the weights.
    source : str or Path
        A codec (bundled name, local folder or hub repository; the releases
        contain WavLM-large's first six layers), or a WavLM in the layout of
        `transformers`, with `config.json` and `model.safetensors`.
    revision : str, optional
        Commit, tag or branch on the hub.

    Raises
    ------
    ConfigError, CheckpointError
        If the source cannot be read or its encoder does not fit.
    """
    _, folder = model_files.resolve_source(source, revision)
    path = folder / model_files.CONFIG_FILE
    published = read_json(path)
    weights = checkpoint.read_weights(folder / model_files.WEIGHTS_FILE)
    config = codec.config.encoder_config
    if isinstance(published, dict) and published.get("model_type") == "wavlm":
        if not isinstance(config, WavLMConfig):
            raise ConfigError(
                f"{path}: a WavLM, but the codec's encoder is a "
                f"{codec.config.encoder_name}"
            )
        _check_options(config, published, path)
        weights = wavlm_from_transformers(weights, config.num_layers)
    else:
        _check_encoder(config, CodecConfig.parse(published, path), path)
        weights = {
            name.removeprefix("encoder."): value
            for name, value in weight_names.upgrade_names(
                weights, folder
            ).items()
            if name.startswith("encoder.")
        }
    checkpoint.load_state(codec.encoder, weights, folder)


def _check_encoder(config: Any, theirs: CodecConfig, path: Path) -> None:
    """Raise if options that the shapes of weights do not show differ."""
    if type(theirs.encoder_config) is not type(config):
        return  # loading fails, since the names of the weights differ
    keys = ["strides", "max_distance"]
    # A student may start from its teacher, but not the reverse.
    if not getattr(config, "causal", False):
        keys.append("causal")
    for key in keys:
        got = getattr(theirs.encoder_config, key, None)
        needed = getattr(config, key, None)
        if got != needed:
            raise ConfigError(
                f"{path}: its encoder has {key} {got!r:.80}, the codec needs "
                f"{needed!r:.80}"
            )


def _check_options(
    config: WavLMConfig, published: dict[str, Any], path: Path
) -> None:
    """Raise if a WavLM differs in options that shapes do not show."""
    published = {"do_stable_layer_norm": False, **published}
    for key, needed in (
        ("do_stable_layer_norm", True),
        ("feat_extract_activation", "gelu"),
        ("hidden_act", "gelu"),
        ("layer_norm_eps", 1e-5),
        ("conv_stride", list(config.strides)),
        ("max_bucket_distance", config.max_distance),
    ):
        got = published.get(key, needed)
        if got != needed:
            raise ConfigError(
                f"{path}: {key} is {got!r:.80}, the codec needs {needed!r}"
            )
