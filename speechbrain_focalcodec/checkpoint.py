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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from speechbrain_focalcodec import hub
from speechbrain_focalcodec.config import (
    CodecConfig,
    all_causal,
    as_saved_before,
    left_out,
    read_json,
    version_of,
)
from speechbrain_focalcodec.errors import (
    CheckpointError,
    ConfigError,
    abridge,
)
from speechbrain_focalcodec.modules.part_configs import VERSIONS
from speechbrain_focalcodec.parts import ROLES, build_part
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = [
    "BUNDLED_MODELS",
    "bundled_models",
    "CONFIG_FILE",
    "DEFAULT_CAUSAL_MODEL",
    "DEFAULT_MODEL",
    "MetaWeights",
    "ModelFiles",
    "WEIGHTS_FILE",
    "find_model",
    "fingerprint_of",
    "join_qkv",
    "load_state",
    "load_weights",
    "match_config",
    "read_parts",
    "read_weights",
    "resolve_source",
    "upgrade_names",
    "writing_model",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SUFFIX = ".safetensors"
# Of pickled weights, which can run code when they are read.
PICKLES = (".pt", ".pth", ".bin")
DEFAULT_MODEL = "focalcodec_mini_50hz"
# What streams when no model is named.
DEFAULT_CAUSAL_MODEL = "focalcodec_mini_50hz_causal"
BUNDLED_MODELS = Path(__file__).parent / "models"

# What this package's weights files carry, and the published package's do not.
METADATA = {"format": "pt"}
# What can be wrong with a weight.
MISFITS = ("missing weight", "unexpected weight", "wrong shape", "wrong type")

Weights = dict[str, torch.Tensor]


def resolve_source(
    source: str | Path,
    revision: str | None = None,
    names: Sequence[str | Sequence[str]] = hub.MODEL_FILES,
    options: hub.HubOptions | None = None,
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
    options : dict, optional
        Hub only: see :class:`speechbrain_focalcodec.hub.HubOptions`.

    Returns
    -------
    name : str
        What the model is called.
    folder : Path
        Holds `config.json` and `model.safetensors`.

    Raises
    ------
    CheckpointError
        If there is no such model or it cannot be fetched, or a revision is
        given for one that has none.

    Example
    -------
    >>> resolve_source("focalcodec_mini_50hz")[0]
    'focalcodec_mini_50hz'
    """
    text = os.fspath(source)
    folder = Path(os.path.expanduser(text))
    # Path.is_dir raises when the name is too long for one.
    if os.path.isdir(folder):
        _check_no_revision(folder, revision)
        return folder.resolve().name, folder
    bundled = bundled_models()
    if text in bundled:
        _check_no_revision(text, revision)
        return text, BUNDLED_MODELS / text
    if isinstance(source, str) and hub.is_repository(text):
        folder = hub.fetch(text, revision, names, options, hub.PATIENCE)
        return text, folder
    if folder.suffix in PICKLES and os.path.isfile(folder):
        raise CheckpointError(hub.pickled_message(folder))
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    raise CheckpointError(
        f"model {shown!r}: neither a folder, nor a hub repository "
        "(owner/name), nor a configuration (.json) in one of these, nor one "
        f"of the bundled models {bundled}"
    )


def _check_no_revision(source: str | Path, revision: str | None) -> None:
    if revision is not None:
        raise CheckpointError(
            f"revision {revision!r}: {source} has none; give a revision for a "
            "hub repository only"
        )


@dataclass(frozen=True)
class ModelFiles:
    """Where a codec is.

    Arguments
    ---------
    name : str
        What it is called.
    config : Path
        Its configuration.
    weights : Path
        Its weights; they may be missing.

    Example
    -------
    >>> find_model("tests/parity/offline_50hz").weights.name
    'model.safetensors'
    """

    name: str
    config: Path
    weights: Path


def find_model(
    source: str | Path,
    revision: str | None = None,
    options: hub.HubOptions | None = None,
) -> ModelFiles:
    """Find a codec's files, fetching them from the hub when needed.

    Arguments
    ---------
    source : str or Path
        Name of a bundled model; a local folder or hub repository with
        `config.json` and `model.safetensors`; or a configuration in one, such
        as ``folder/config_x.json`` or ``owner/name/config_x.json``, with its
        weights beside it under the same name.
    revision : str, optional
        Hub only: commit, tag or branch.
    options : dict, optional
        Hub only: see :class:`speechbrain_focalcodec.hub.HubOptions`.

    Returns
    -------
    ModelFiles
        The files.

    Raises
    ------
    CheckpointError
        If there is no such model or it cannot be fetched, or a revision is
        given for one that has none.

    Example
    -------
    >>> find_model("tests/parity/offline_50hz/config.json").name
    'offline_50hz'
    """
    text = os.fspath(source)
    path = Path(os.path.expanduser(text))
    if path.suffix == ".json" and os.path.isfile(path):
        _check_no_revision(path, revision)
        name = path.stem
        if path.name == CONFIG_FILE:
            name = path.resolve().parent.name
        return ModelFiles(name, path, _beside(path, _weights_names(path.name)))
    match = hub.split_file(text) if isinstance(source, str) else None
    if match is None or os.path.isdir(path.parent):
        name, folder = resolve_source(source, revision, options=options)
        config = folder / CONFIG_FILE
        names = (WEIGHTS_FILE, *_weights_names(CONFIG_FILE))
        return ModelFiles(name, config, _beside(config, names))
    repository, file = match
    names = _weights_names(file)
    folder = hub.fetch(
        repository, revision, (file, names), options, hub.PATIENCE
    )
    return ModelFiles(text, folder / file, _beside(folder / file, names))


def _weights_names(config: str) -> tuple[str, ...]:
    """Names that the weights of a configuration can have."""
    names = (Path(config).with_suffix(WEIGHTS_SUFFIX).name,)
    return (*names, WEIGHTS_FILE) if config == CONFIG_FILE else names


def _beside(config: Path, names: Sequence[str]) -> Path:
    """The weights beside a configuration: the first that are there."""
    paths = [config.with_name(name) for name in names]
    found = [path for path in paths if path.exists()]
    pickled = [path for path in paths if _pickled(path) is not None]
    return [*found, *pickled, paths[-1]][0]


def _pickled(path: Path) -> Path | None:
    """Pickled weights in place of a safetensors file."""
    others = (path.with_suffix(suffix) for suffix in PICKLES)
    return next(filter(Path.is_file, others), None)


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


def match_config(files: ModelFiles, data: Any = None) -> CodecConfig:
    """Read a configuration, with defaults that fit its weights.

    What it leaves out has the default of one version of the published
    package: the one that its keys tell if the weights fit, else the other.

    Arguments
    ---------
    files : ModelFiles
        Of :func:`find_model`.
    data : dict, optional
        The configuration, when it is not that of the file.

    Returns
    -------
    CodecConfig
        The weights have the names and shapes that it needs.

    Raises
    ------
    ConfigError
        If it is missing or does not fit the schema, or if no version's
        defaults fit the weights; the message names what to write down.
    CheckpointError
        If the weights are missing, or do not fit.
    """
    if data is None:
        data = read_json(files.config)
    first = VERSIONS[0]
    if isinstance(data, dict) and _saved_here(files.weights):
        _check_wavenext(data, files.config)
        data = as_saved_before(data)
    elif isinstance(data, dict):
        first = version_of(data) or first
    configs, problems = [], []
    for version in sorted(VERSIONS, key=lambda version: version != first):
        try:
            configs.append(CodecConfig.parse(data, files.config, version))
        except ConfigError as error:
            problems.append(error)
    if not configs:
        raise problems[0]
    shapes = upgrade_names(
        read_weights(files.weights, device="meta"), files.weights
    )
    outlines = []
    for config in configs:
        outlines.append(_outline(config))
        if not _misfits(outlines[-1], shapes):
            return config
    parts = {name.partition(".")[0] for name in _misfits(outlines[0], shapes)}
    missing = [key for key in left_out(data) if key.partition("_")[0] in parts]
    # Only where what is left out could be all that is wrong.
    if parts == {key.partition("_")[0] for key in missing}:
        raise ConfigError(
            f"{files.config}: no version's defaults fit {files.weights}; "
            f"write down {abridge(missing, most=12)}"
        )
    check_state(outlines[0], shapes, files.weights)
    return configs[0]


def _outline(config: CodecConfig) -> nn.Module:
    """The parts without memory: a small file may claim a huge model."""
    with MetaWeights():
        return nn.ModuleDict(
            {
                role: build_part(role, config.name(role), config.part(role))
                for role in ROLES
            }
        )


def _saved_here(weights: Path) -> bool:
    """Whether this package wrote the weights, as far as they tell."""
    if not weights.is_file():
        return False
    with _opened(weights) as stream:
        return (stream.metadata() or {}) == METADATA


def _check_wavenext(data: dict[str, Any], path: Path) -> None:
    """Raise if it is open whether a WaveNeXt is causal.

    The weights look like this package's, whose earlier versions took it to be;
    but other tools write such weights too, beside published configurations.
    """
    decoder = data.get("decoder_config", {})
    if (
        data.get("decoder_name") == "WaveNeXt"
        and isinstance(decoder, dict)
        and "causal" not in decoder
        and not all_causal(data)
        and data.get("encoder_name") != "LogMel"
    ):
        raise ConfigError(
            f"{path}: write down decoder_config.causal: true if an earlier "
            "version of speechbrain_focalcodec wrote the file, false if the "
            "published package did"
        )


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
            save_file(weights, temporary, metadata=METADATA)
            (folder / CONFIG_FILE).unlink(missing_ok=True)
        yield


def read_weights(
    path: str | Path,
    device: str = "cpu",
    parts: Sequence[str] | None = None,
) -> Weights:
    """Read a safetensors file.

    Arguments
    ---------
    path : str or Path
        The file.
    device : str
        Where to put the tensors; ``meta`` reads their shapes alone.
    parts : sequence of str, optional
        Of a codec: the parts whose weights to read; all by default.

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
        pickled = _pickled(path)
        raise CheckpointError(
            hub.pickled_message(pickled)
            if pickled is not None
            else f"{path}: not found; a model folder holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}"
        )
    with _opened(path) as stream:
        names = [
            name
            for name in stream.keys()
            if parts is None or name.partition(".")[0] in parts
        ]
        if device != "meta":
            return {name: stream.get_tensor(name).to(device) for name in names}
        shapes = {name: stream.get_slice(name).get_shape() for name in names}
        return {
            name: torch.empty(shape, device="meta")
            for name, shape in shapes.items()
        }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; what is wrong with it is a CheckpointError."""
    try:
        with safe_open(path, "pt", device="cpu") as stream:
            yield stream
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


def load_weights(codec: Any, path: str | Path) -> None:
    """Load weights of either published format, strictly.

    Arguments
    ---------
    codec : FocalCodec
        Receives those of the parts that it has, in its own precision.
    path : str or Path
        `model.safetensors`.

    Raises
    ------
    CheckpointError
        If the file is damaged, or a weight is missing, unexpected or of
        another shape; the message names it.
    """
    # What belongs to no part is an error unless only some parts are wanted.
    parts = codec.parts if len(codec.parts) < len(ROLES) else None
    weights = read_weights(path, parts=parts)
    load_state(codec, upgrade_names(weights, path), path)


def read_parts(
    config: CodecConfig, path: Path, parts: Sequence[str]
) -> Weights:
    """Read the weights of some parts of a codec.

    Arguments
    ---------
    config : CodecConfig
        The codec's configuration.
    path : Path
        `model.safetensors`.
    parts : sequence of str
        Names of the parts.

    Returns
    -------
    dict
        Tensors by name, in the precision that a whole codec has.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    expected = _outline(config).state_dict()
    weights = read_weights(path, parts=parts)
    return {
        name: value.to(expected[name].dtype)
        for name, value in upgrade_names(weights, path).items()
    }


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
    problems: dict[str, list[str]] = {}
    for _, (label, text) in sorted(_misfits(module, weights).items()):
        problems.setdefault(label, []).append(text)
    if problems:
        told = [
            f"{label}: {abridge(problems[label])}"
            for label in sorted(problems, key=MISFITS.index)
        ]
        raise CheckpointError(f"{source}: {'; '.join(told)}")


def _misfits(module: nn.Module, weights: Weights) -> dict[str, tuple[str, str]]:
    """What is wrong with weights, one of `MISFITS` and a text, by name."""
    expected = module.state_dict()
    missing, unexpected, shape, kind = MISFITS
    found = {}
    for name in expected.keys() | weights.keys():
        if name not in weights:
            found[name] = missing, name
        elif name not in expected:
            found[name] = unexpected, name
        elif weights[name].shape != expected[name].shape:
            found[name] = (
                shape,
                f"{name} is {list(weights[name].shape)}, the configuration "
                f"needs {list(expected[name].shape)}",
            )
        elif (
            weights[name].is_floating_point()
            != expected[name].is_floating_point()
        ):
            found[name] = (
                kind,
                f"{name} is {weights[name].dtype}, not {expected[name].dtype}",
            )
    return found


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
