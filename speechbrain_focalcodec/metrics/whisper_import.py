"""Loads a Whisper of the hub into openai-whisper's model."""

import re
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.checkpoint import Weights
from speechbrain_focalcodec.config import read_json
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.metrics.hub_models import (
    WEIGHTS_FILES,
    find_model,
    load_model,
    read_any_weights,
)
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["WHISPER_SMALL", "load_hub_whisper", "rename_whisper"]

# Append "@" and a commit to pin it.
WHISPER_SMALL = "openai/whisper-small"

# Names of parts in transformers (regular expressions) and in OpenAI's model.
NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.(self_attn|encoder_attn)_layer_norm\.", r".\1_ln."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.self_attn", ".attn"),
    (r"\.encoder_attn", ".cross_attn"),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"\.embed_tokens\.", ".token_embedding."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
)


def rename_whisper(weights: Weights) -> Weights:
    """Rename weights of `transformers`' Whisper as in openai-whisper."""
    renamed = {}
    for name, value in weights.items():
        if name == "proj_out.weight":  # tied to the embedding
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.float()
    return renamed


def load_hub_whisper(source: str | Path, device: str = "cpu") -> Any:
    """Load a Whisper from the hub or from a folder in its layout.

    Sizes are taken from the weights, and the numbers of attention heads from
    `config.json`. The tokenizer is openai-whisper's. Raises a CheckpointError
    if the source is not found or is not a Whisper.
    """
    import_extra("whisper", "whisper")
    library = import_extra("whisper.model", "whisper")
    folder = find_model(source, ["config.json", WEIGHTS_FILES])
    config = read_json(folder / "config.json")
    weights = rename_whisper(read_any_weights(folder))
    try:
        dims = _dimensions(library, config, weights)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: no Whisper in the layout of transformers "
            f"({error!r:.200})"
        ) from error
    return load_model(lambda: library.Whisper(dims), weights, folder).to(device)


def _dimensions(library: Any, config: Any, weights: Weights) -> Any:
    """Sizes of the model with these weights."""
    n_vocab, n_text_state = weights["decoder.token_embedding.weight"].shape
    n_audio_ctx, n_audio_state = weights["encoder.positional_embedding"].shape
    heads = {
        part: int(config[f"{part}_attention_heads"])
        for part in ("encoder", "decoder")
    }
    for part, width in (("encoder", n_audio_state), ("decoder", n_text_state)):
        if heads[part] < 1 or width % heads[part]:
            raise ValueError(f"{heads[part]} heads for a width of {width}")
    return library.ModelDimensions(
        n_mels=weights["encoder.conv1.weight"].shape[1],
        n_audio_ctx=n_audio_ctx,
        n_audio_state=n_audio_state,
        n_audio_head=heads["encoder"],
        n_audio_layer=_count_layers(weights, "encoder"),
        n_vocab=n_vocab,
        n_text_ctx=weights["decoder.positional_embedding"].shape[0],
        n_text_state=n_text_state,
        n_text_head=heads["decoder"],
        n_text_layer=_count_layers(weights, "decoder"),
    )


def _count_layers(weights: Weights, part: str) -> int:
    pattern = re.compile(rf"{part}\.blocks\.(\d+)\.")
    return len({match[1] for name in weights if (match := pattern.match(name))})
