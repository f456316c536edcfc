"""Loads models in the hub's layout without executing code.

Only plain values of a `config.json` are used, for classes named in this
package. Weights come from safetensors, or from a checkpoint read with
``weights_only=True``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechbrain_focalcodec import hub
from speechbrain_focalcodec.checkpoint import (
    MetaWeights,
    Weights,
    load_state,
    read_weights,
)
from speechbrain_focalcodec.config import read_json
from speechbrain_focalcodec.errors import CheckpointError, ConfigError, abridge

__all__ = [
    "WEIGHTS_FILES",
    "find_model",
    "load_checkpoint",
    "load_model",
    "read_any_weights",
    "read_sizes",
    "tensors_of",
]

# In order of preference.
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


def find_model(
    source: str | Path, names: Sequence[str | Sequence[str]]
) -> Path:
    """Find a model's folder, or fetch the files `names` from the hub.

    `source` is a folder, ``owner/name`` or ``owner/name@revision``. Raises a
    CheckpointError if it is not found.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    repository, _, revision = str(source).partition("@")
    if hub.is_repository(repository):
        return hub.fetch(repository, revision or None, names)
    raise CheckpointError(
        f"{source}: neither a folder nor a hub repository (owner/name or "
        "owner/name@revision)"
    )


def read_any_weights(folder: Path) -> Weights:
    """Read a folder's weights by name; safetensors are preferred.

    Raises a CheckpointError if there are none, or reading would execute code.
    """
    for name in WEIGHTS_FILES:
        path = folder / name
        if path.is_file():
            break
    else:
        raise CheckpointError(f"{folder}: has no {' or '.join(WEIGHTS_FILES)}")
    if path.suffix == ".safetensors":
        return read_weights(path)
    return tensors_of(load_checkpoint(path), path)


class _Inert:
    """Replaces other objects of a checkpoint than tensors; does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_checkpoint(path: Path, replace_objects: bool = False) -> Any:
    """Read a PyTorch checkpoint without executing code.

    With `replace_objects`, other objects than tensors, as in training
    checkpoints, are replaced by objects that do nothing; nothing is imported or
    called. Raises a CheckpointError if the file cannot be read like this.
    """
    try:
        named: list[Any] = []
        if replace_objects:
            find = torch.serialization.get_unsafe_globals_in_checkpoint
            named = [
                (type("Inert", (_Inert,), {}), name) for name in find(path)
            ]
        with torch.serialization.safe_globals(named):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise any kind
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        raise CheckpointError(
            f"{path}: cannot be read without executing code "
            f"({reason.partition(chr(10))[0]}); where you trust it, save its "
            "state dict with safetensors"
        ) from error


def tensors_of(weights: Any, path: Path) -> Weights:
    """Check that the content of a file is a state dict."""
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in weights.items()
    ):
        raise CheckpointError(f"{path}: holds no tensors by name")
    return dict(weights)


def read_sizes(path: Path, config_class: type, model_type: str) -> Any:
    """Make a `transformers` configuration from plain values of a `config.json`.

    Keys are used if they are specific to the model type and hold numbers,
    strings or lists of numbers. Masking is off. Raises a ConfigError if the
    model type differs, or a value is wrong.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != model_type:
        found = values.get("model_type") if isinstance(values, dict) else None
        raise ConfigError(
            f"{path}: model_type is {found!r:.80}, not {model_type!r}"
        )
    # Keys of all models control loading and generation; some name code.
    general = inspect.signature(config_class.__mro__[1]).parameters
    own = inspect.signature(config_class).parameters
    sizes = {
        key: value
        for key, value in values.items()
        if key in own and key not in general and _is_plain(value)
    }
    sizes |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    try:
        return config_class(**sizes, attn_implementation="eager")
    except Exception as error:
        raise ConfigError(f"{path}: {error}") from error


def _is_plain(value: Any) -> bool:
    """True for numbers, strings and lists of numbers."""
    if isinstance(value, list):
        return all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float | str)


def load_model(
    make: Callable[[], nn.Module], weights: Weights, source: str | Path
) -> nn.Module:
    """Build a model in eval mode and load its weights.

    `weights` may have either of PyTorch's names for weight norm. Raises a
    CheckpointError, before the model is allocated, if they do not fit.
    """
    with MetaWeights():
        outline = make().state_dict()
    weights = _spell_weight_norms(weights, outline)
    shapes = {name: value.shape for name, value in weights.items()}
    wrong = [
        name for name in outline if shapes.get(name) != outline[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: the weights do not fit its configuration: missing or "
            f"of another shape: {abridge(sorted(wrong))}"
        )
    model = make()
    load_state(model, {name: weights[name] for name in outline}, source)
    return model.eval()


def _spell_weight_norms(weights: Weights, outline: Weights) -> Weights:
    """Rename weight norm parameters as in the model."""
    renamed = {}
    for name, value in weights.items():
        for old, new in (
            ("weight_g", "parametrizations.weight.original0"),
            ("weight_v", "parametrizations.weight.original1"),
        ):
            for this, other in ((old, new), (new, old)):
                stem = name.removesuffix(this)
                if stem != name and stem + other in outline:
                    name = stem + other
        renamed[name] = value
    return renamed
