"""Models on disk: published formats, loading and saving.

A model is a folder with `config.json` and `model.safetensors`. Nothing in it
is executed or unpickled. Two layouts of weights are in the wild (the offline
releases have the older one); which one a file has is told by its names.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from speechbrain_focalcodec import hub
from speechbrain_focalcodec.atomic import atomic_path
from speechbrain_focalcodec.config import read_config
from speechbrain_focalcodec.errors import CheckpointError, abridge

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = [
    "BUNDLED_MODELS",
    "bundled_models",
    "CONFIG_FILE",
    "DEFAULT_CAUSAL_MODEL",
    "DEFAULT_MODEL",
    "MetaWeights",
    "WEIGHTS_FILE",
    "fingerprint_of",
    "join_qkv",
    "load_codec",
    "load_state",
    "load_weights",
    "read_weights",
    "resolve_source",
    "save_codec",
    "upgrade_names",
    "writing_model",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
DEFAULT_MODEL = "focalcodec_mini_50hz"
# What streams when no model is named.
DEFAULT_CAUSAL_MODEL = "focalcodec_mini_50hz_causal"
BUNDLED_MODELS = Path(__file__).parent / "models"

Weights = dict[str, torch.Tensor]
C = TypeVar("C", bound="FocalCodec")


def resolve_source(
    source: str | Path,
    revision: str | None = None,
    names: Sequence[str | Sequence[str]] = hub.MODEL_FILES,
) -> tuple[str, Path]:
    """Find a model's folder, fetching it from the hub when needed.

    Arguments
    ---------
    source : str or Path
        Name of a bundled model, local folder or hub repository.
    revision : str, optional
        Hub only: commit, tag or branch.
    names : sequence of str
        Hub only: the files to fetch, see
        :func:`speechbrain_focalcodec.hub.fetch`.

    Returns
    -------
    name : str
        What the model is called.
    folder : Path
        Holds `config.json` and `model.safetensors`.

    Raises
    ------
    CheckpointError
        If there is no such model or it cannot be fetched.

    Example
    -------
    >>> resolve_source("focalcodec_mini_50hz")[0]
    'focalcodec_mini_50hz'
    """
    text = os.fspath(source)
    folder = Path(os.path.expanduser(text))
    # Path.is_dir raises when the name is too long for one.
    if os.path.isdir(folder):
        return folder.resolve().name, folder
    bundled = bundled_models()
    if text in bundled:
        return text, BUNDLED_MODELS / text
    if isinstance(source, str) and hub.is_repository(text):
        return text, hub.fetch(text, revision, names)
    raise CheckpointError(
        f"model {text!r}: neither a folder, nor a hub repository "
        f"(owner/name), nor one of the bundled models {bundled}"
    )


def bundled_models() -> list[str]:
    """Names of the models that come with the package.

    Returns
    -------
    list of str
        Sorted.

    Example
    -------
    >>> DEFAULT_MODEL in bundled_models()
    True
    """
    return sorted(
        path.parent.name for path in BUNDLED_MODELS.glob("*/config.json")
    )


def offline_message(name: str) -> str:
    """Why an offline model does not stream, and which models do.

    Arguments
    ---------
    name : str
        The model's name.

    Returns
    -------
    str
        For an error.

    Example
    -------
    >>> "lucadellalib/focalcodec_50hz_4k_causal" in offline_message("mine")
    True
    """
    return hub.offline_message(name, bundled_models())


def load_codec(
    cls: type[C], source: str | Path, revision: str | None = None
) -> C:
    """Build a codec from a folder, a bundled name or a hub repository.

    Arguments
    ---------
    cls : type
        :class:`~speechbrain_focalcodec.codec.FocalCodec`.
    source : str or Path
        See :func:`resolve_source`.
    revision : str, optional
        Hub only.

    Returns
    -------
    FocalCodec
        With its weights.

    Raises
    ------
    ConfigError, CheckpointError
        See :meth:`FocalCodec.from_pretrained`.
    """
    name, folder = resolve_source(source, revision)
    config = read_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    # A small file may claim a huge model: compare before allocating it.
    with MetaWeights():
        outline = cls(config)
    shapes = upgrade_names(read_weights(path, device="meta"), path)
    check_state(outline, shapes, path)
    codec = cls(config, name=name)
    load_weights(codec, path)
    return codec


class MetaWeights(TorchFunctionMode):
    """Within it, layers are made without memory for their weights.

    `torch.device("meta")` would do so for all tensors; but windows and
    filterbanks cannot be computed without values.

    Example
    -------
    >>> with MetaWeights():
    ...     layer = nn.Linear(2, 3)
    >>> layer.weight.device.type
    'meta'
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def save_codec(codec: "FocalCodec", folder: str | Path) -> None:
    """Write a codec as a model folder in the v0.0.2 format.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    folder : str or Path
        Made when missing. An interrupted call leaves what was there, or a
        folder without `config.json`; never a mixture of two models.
    """
    config = codec.config.to_dict()
    with writing_model(Path(folder), config, codec.state_dict()):
        pass


@contextmanager
def writing_model(
    folder: Path, config: dict[str, Any], weights: Weights
) -> Iterator[None]:
    """Write `config.json` and `model.safetensors`, and more within the context.

    Arguments
    ---------
    folder : Path
        Made when missing. Interrupted, it has what was there before, or no
        `config.json`; never a mixture of two models.
    config : dict
        The configuration.
    weights : dict
        Tensors by name.

    Yields
    ------
    None
        What is written now is there before `config.json` is.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> with writing_model(folder, {"rate": 50}, {"w": torch.zeros(2)}):
    ...     sorted(path.name for path in folder.glob("[!.]*"))
    ['model.safetensors']
    >>> (folder / "config.json").read_text()
    '{\\n  "rate": 50\\n}\\n'
    """
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in weights.items()
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    # config.json is moved in last: it marks a whole model.
    with atomic_path(folder / CONFIG_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
        with atomic_path(folder / WEIGHTS_FILE) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
            (folder / CONFIG_FILE).unlink(missing_ok=True)
        yield


def read_weights(path: str | Path, device: str = "cpu") -> Weights:
    """Read a safetensors file.

    Arguments
    ---------
    path : str or Path
        The file.
    device : str
        Where to put the tensors; ``meta`` reads their shapes alone.

    Returns
    -------
    dict
        Tensors by name.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not found; a model folder holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}"
        )
    try:
        with safe_open(path, "pt", device="cpu") as stream:
            names = stream.keys()
            if device != "meta":
                return {
                    name: stream.get_tensor(name).to(device) for name in names
                }
            shapes = {
                name: stream.get_slice(name).get_shape() for name in names
            }
        return {
            name: torch.empty(shape, device="meta")
            for name, shape in shapes.items()
        }
    # RuntimeError and TypeError: sizes or types that PyTorch does not have.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as e:
        raise CheckpointError(
            f"{path}: no readable safetensors file ({e}); fetch or export it "
            "again"
        ) from None


def fingerprint_of(
    config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> str:
    """Identity of a model, or of a part of one.

    Arguments
    ---------
    config : dict
        Its configuration, as JSON can hold it.
    weights : dict
        Tensors by name.

    Returns
    -------
    str
        SHA-256 (hex) over both.

    Example
    -------
    >>> weights = {"bias": torch.zeros(1)}
    >>> fingerprint_of({"dim": 1}, weights)[:8]
    'ce6e6342'
    >>> fingerprint_of({"dim": 2}, weights) == fingerprint_of({}, weights)
    False
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(codec: nn.Module, path: str | Path) -> None:
    """Load weights of either published format, strictly.

    Arguments
    ---------
    codec : FocalCodec
        Receives them, in its own precision.
    path : str or Path
        `model.safetensors`.

    Raises
    ------
    CheckpointError
        If the file is damaged, or a weight is missing, unexpected or of
        another shape; the message names it.
    """
    load_state(codec, upgrade_names(read_weights(path), path), path)


def load_state(module: nn.Module, weights: Weights, source: str | Path) -> None:
    """Load weights with the names of this package, strictly.

    Arguments
    ---------
    module : nn.Module
        Receives them, in its own precision.
    weights : dict
        Tensors by name.
    source : str or Path
        Where they come from, for the message.

    Raises
    ------
    CheckpointError
        If a weight is missing, unexpected, of another shape or not finite.

    Example
    -------
    >>> load_state(nn.Linear(2, 1), {"bias": torch.zeros(1)}, "a file")
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.CheckpointError: a file: missing weight: \
weight
    """
    check_state(module, weights, source)
    expected = module.state_dict()
    # As the module will hold them: a cast may overflow.
    weights = {
        name: value.to(expected[name].dtype) for name, value in weights.items()
    }
    broken = [
        name
        for name, value in sorted(weights.items())
        if not value.isfinite().all()
    ]
    if broken:
        raise CheckpointError(
            f"{source}: NaN or infinite weight: {abridge(broken)}"
        )
    module.load_state_dict(weights)


def check_state(
    module: nn.Module, weights: Weights, source: str | Path
) -> None:
    """Raise unless names, shapes and kinds of numbers are the module's.

    Arguments
    ---------
    module : nn.Module
        What shall hold the weights.
    weights : dict
        Tensors by name, on any device.
    source : str or Path
        Where they come from, for the message.

    Raises
    ------
    CheckpointError
        If a weight is missing, unexpected, of another shape or kind.
    """
    expected = module.state_dict()
    problems = []
    for label, names in (
        ("missing weight", expected.keys() - weights.keys()),
        ("unexpected weight", weights.keys() - expected.keys()),
    ):
        if names:
            problems.append(f"{label}: {abridge(sorted(names))}")
    shapes, types = [], []
    for name in expected.keys() & weights.keys():
        value, wanted = weights[name], expected[name]
        if value.shape != wanted.shape:
            shapes.append(
                f"{name} is {list(value.shape)}, the configuration needs "
                f"{list(wanted.shape)}"
            )
        if value.is_floating_point() != wanted.is_floating_point():
            types.append(f"{name} is {value.dtype}, not {wanted.dtype}")
    for label, found in (("wrong shape", shapes), ("wrong type", types)):
        if found:
            problems.append(f"{label}: {abridge(sorted(found))}")
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(problems)}")


def upgrade_names(
    weights: Weights, source: str | Path = "the weights"
) -> Weights:
    """Bring weights of the v0.0.1 format to the names of v0.0.2.

    Arguments
    ---------
    weights : dict
        Tensors by name, in either format.
    source : str or Path
        Where they come from, for the message.

    Returns
    -------
    dict
        Tensors by v0.0.2 name; the same ones if they had these names.

    Raises
    ------
    CheckpointError
        If a weight is there under both names, or of the query, key and value
        projections of a layer some are missing.

    Example
    -------
    >>> list(upgrade_names({"compressor.layers.0.1.modulation.norm": None}))
    ['compressor.layers.0.focal_block.modulation.norm']
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

    Arguments
    ---------
    weights : dict
        Tensors by name.
    source : str or Path
        Where they come from, for the message.

    Returns
    -------
    dict
        Tensors by name, others as they were.

    Raises
    ------
    CheckpointError
        If one of the three is missing or does not fit the others, or the
        joined weight is there too.

    Example
    -------
    >>> split = {f"a.{name}_proj.bias": torch.ones(1) for name in "qkv"}
    >>> join_qkv(split, "a file")
    {'a.qkv_proj.bias': tensor([1., 1., 1.])}
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
        if joined_name in joined:  # done with the first of the three
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
