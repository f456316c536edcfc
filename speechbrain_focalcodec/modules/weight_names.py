"""Converts names of weights from the published v0.0.1 to v0.0.2."""

import re
from pathlib import Path

import torch

from speechbrain_focalcodec.errors import CheckpointError

__all__ = ["join_qkv", "upgrade_names"]

Weights = dict[str, torch.Tensor]


def upgrade_names(
    weights: Weights, source: str | Path = "the weights"
) -> Weights:
    """Rename weights of the v0.0.1 format to v0.0.2; others stay as they are.

    `source` is named in messages. Raises CheckpointError if a weight has both
    names, or a query, key or value projection is missing.
    """
    old = re.compile(
        r"(compressor|decompressor)\.layers\.\d+\.[01]\.|"
        r".*\.attention\.[qkv]_proj\.|quantizer\.mask$"
    )
    if not any(old.match(name) for name in weights):
        return weights
    parts = {
        ("compressor", "0"): "downscale",
        ("compressor", "1"): "focal_block",
        ("decompressor", "0"): "focal_block",
        ("decompressor", "1"): "upscale",
    }
    upgraded: Weights = {}
    for name, value in weights.items():
        if name == "quantizer.mask" or name.startswith("encoder.encoder.norm."):
            continue
        upgraded_name = re.sub(
            r"^(compressor|decompressor)\.layers\.(\d+)\.([01])\.",
            lambda match: (
                f"{match[1]}.layers.{match[2]}.{parts[match[1], match[3]]}."
            ),
            name,
        )
        if upgraded_name != name and upgraded_name in weights:
            raise CheckpointError(
                f"{source}: {name} and {upgraded_name} are the same weight"
            )
        upgraded[upgraded_name] = value
    return join_qkv(upgraded, source)


def join_qkv(weights: Weights, source: str | Path) -> Weights:
    """Concatenate q_proj, k_proj and v_proj, in that order, to qkv_proj.

    Raises CheckpointError if one of the three is missing or does not match the
    others, or the joined weight also exists.
    """
    joined: Weights = {}
    for name, value in weights.items():
        match = re.fullmatch(r"(.*\.)[qkv]_proj(\.weight|\.bias)", name)
        if match is None:
            joined[name] = value
            continue
        names = [f"{match[1]}{letter}_proj{match[2]}" for letter in "qkv"]
        joined_name = f"{match[1]}qkv_proj{match[2]}"
        if joined_name in weights:
            raise CheckpointError(
                f"{source}: {name} and {joined_name} are the same weight"
            )
        if joined_name in joined:
            continue
        missing = [name for name in names if name not in weights]
        if missing:
            raise CheckpointError(
                f"{source}: missing weight: {', '.join(missing)}"
            )
        parts = [weights[name] for name in names]
        if len({part.shape for part in parts}) > 1 or not value.ndim:
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise CheckpointError(
                f"{source}: wrong shape: {', '.join(names)} are {shapes}"
            )
        if len({part.dtype for part in parts}) > 1:
            types = ", ".join(str(part.dtype) for part in parts)
            raise CheckpointError(
                f"{source}: wrong type: {', '.join(names)} are {types}"
            )
        joined[joined_name] = torch.cat(parts)
    return joined
