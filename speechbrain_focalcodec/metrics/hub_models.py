"""Models of the hub's layout, built without executing what is in them.

Neither `transformers`' loading nor its reading of configurations is used: of
a `config.json` only plain sizes are taken, which go to a class that this
package names, and weights are tensors from safetensors or from a checkpoint
read with ``weights_only=True``.
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

# The first that is there is taken.
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


def find_model(
    source: str | Path, names: Sequence[str | Sequence[str]]
) -> Path:
    """Find a model's folder, fetching it from the hub when needed.

    Arguments
    ---------
    source : str or Path
        Local folder, or hub repository ``owner/name`` with the revision to
        take, ``owner/name@revision``; its main branch by default.
    names : sequence of str
        Files to fetch, see :func:`speechbrain_focalcodec.hub.fetch`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    CheckpointError
        If there is none and it cannot be fetched.

    Example
    -------
    >>> find_model("tests/parity/offline_50hz", []).name
    'offline_50hz'
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
    """Read the weights in a folder, from safetensors where there are any.

    Arguments
    ---------
    folder : Path
        With one of `WEIGHTS_FILES`.

    Returns
    -------
    dict
        Tensors by name.

    Raises
    ------
    CheckpointError
        If there are none, or they cannot be read without executing code.
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
    """Stands for whatever a checkpoint names besides tensors; does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_checkpoint(path: Path, replace_objects: bool = False) -> Any:
    """Read a checkpoint of PyTorch without executing what it names.

    Arguments
    ---------
    path : Path
        A file of `torch.save`.
    replace_objects : bool
        Whether there may be other objects beside tensors, as checkpoints of
        training have them. They are replaced by objects that do nothing, so
        that nothing of them is imported or called.

    Returns
    -------
    object
        What was saved.

    Raises
    ------
    CheckpointError
        If it cannot be read so.
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
    except Exception as error:  # damage can show as any
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        raise CheckpointError(
            f"{path}: cannot be read without executing code "
            f"({reason.partition(chr(10))[0]}); where you trust it, save its "
            "state dict with safetensors"
        ) from error


def tensors_of(weights: Any, path: Path) -> Weights:
    """Check that what was read is a state dict.

    Arguments
    ---------
    weights : object
        What a file held.
    path : Path
        The file, for the message.

    Returns
    -------
    dict
        Tensors by name.

    Raises
    ------
    CheckpointError
        If it is anything else.

    Example
    -------
    >>> list(tensors_of({"a": torch.zeros(1)}, Path("a.pt")))
    ['a']
    """
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in weights.items()
    ):
        raise CheckpointError(f"{path}: holds no tensors by name")
    return dict(weights)


def read_sizes(path: Path, config_class: type, model_type: str) -> Any:
    """Make a configuration of the plain values in a `config.json`.

    Arguments
    ---------
    path : Path
        The file.
    config_class : type
        A configuration of `transformers`.
    model_type : str
        What the file must say that it is of.

    Returns
    -------
    object
        An instance. Of the file's keys those are taken that this kind of
        model has and that hold numbers, names or lists of numbers. Training's
        masks are off.

    Raises
    ------
    ConfigError
        If it is of another kind of model, or a value does not fit.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != model_type:
        found = values.get("model_type") if isinstance(values, dict) else None
        raise ConfigError(
            f"{path}: model_type is {found!r:.80}, not {model_type!r}"
        )
    # What all models have is about loading and generation; some of it names
    # code to run.
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
    """Whether it is a number or a name, or a list of numbers."""
    if isinstance(value, list):
        return all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float | str)


def load_model(
    make: Callable[[], nn.Module], weights: Weights, source: str | Path
) -> nn.Module:
    """Build a model and give it its weights, strictly.

    Arguments
    ---------
    make : callable
        Builds the model.
    weights : dict
        Tensors by name; both of PyTorch's spellings of weight norm will do.
    source : str or Path
        Where they come from, for messages.

    Returns
    -------
    nn.Module
        In evaluation mode.

    Raises
    ------
    CheckpointError
        If the weights do not fit; before memory is taken for the model.

    Example
    -------
    >>> load_model(lambda: nn.Linear(2, 1), {}, "a file")
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.CheckpointError: a file: the weights do not \
fit its configuration: missing or of another shape: bias, weight
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
    """Name magnitudes and directions as the model does."""
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
