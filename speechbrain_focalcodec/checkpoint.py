"""Reading, checking and writing weights and configurations.

A model is a folder with `config.json` and `model.safetensors`. Nothing in it is
executed or unpickled. Weights may have the names of either published version.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    missing_options,
    read_json,
    version_of,
)
from speechbrain_focalcodec.errors import CheckpointError, ConfigError, abridge
from speechbrain_focalcodec.model_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ModelFiles,
    pickled_weights,
)
from speechbrain_focalcodec.modules.part_configs import VERSIONS
from speechbrain_focalcodec.modules.weight_names import upgrade_names
from speechbrain_focalcodec.parts import ROLES, build_part
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = [
    "MetaWeights",
    "Weights",
    "fingerprint_of",
    "load_state",
    "load_weights",
    "match_config",
    "read_parts",
    "read_weights",
    "writing_model",
]

# Metadata of weights files that this package writes; published ones have none.
METADATA = {"format": "pt"}
MISFITS = ("missing weight", "unexpected weight", "wrong shape", "wrong type")

Weights = dict[str, torch.Tensor]


def match_config(files: ModelFiles, data: Any = None) -> CodecConfig:
    """Read a configuration, completed with defaults that fit its weights.

    The defaults are those of one version of the published package: the version
    that the keys show if its defaults fit the weights, else the other one.

    Arguments
    ---------
    files : ModelFiles
        From :func:`find_model`.
    data : dict, optional
        The configuration, if it is not that of the file.

    Returns
    -------
    CodecConfig
        Fits names and shapes of the weights.

    Raises
    ------
    ConfigError
        If the configuration is missing or does not fit the schema, or no
        version's defaults fit the weights; the message names the options to
        write down.
    CheckpointError
        If the weights are missing or do not fit.
    """
    if data is None:
        data = read_json(files.config)
    first = VERSIONS[0]
    if isinstance(data, dict) and _saved_by_this_package(files.weights):
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
    missing = [
        key for key in missing_options(data) if key.partition("_")[0] in parts
    ]
    # Only if missing options could explain every misfit.
    if parts == {key.partition("_")[0] for key in missing}:
        raise ConfigError(
            f"{files.config}: no version's defaults fit {files.weights}; "
            f"write down {abridge(missing, most=12)}"
        )
    check_state(outlines[0], shapes, files.weights)
    return configs[0]


def _outline(config: CodecConfig) -> nn.Module:
    """The parts on the meta device: a small file may claim a huge model."""
    with MetaWeights():
        return nn.ModuleDict(
            {
                role: build_part(role, config.name(role), config.part(role))
                for role in ROLES
            }
        )


def _saved_by_this_package(weights: Path) -> bool:
    """Whether the metadata of the weights is this package's."""
    if not weights.is_file():
        return False
    with _opened(weights) as stream:
        return (stream.metadata() or {}) == METADATA


def _check_wavenext(data: dict[str, Any], path: Path) -> None:
    """Raise ConfigError if it is unknown whether a WaveNeXt is causal.

    The metadata looks like that of earlier versions of this package, which were
    causal by default; but other tools write the same metadata.
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
    """Context in which layers are created with weights on the meta device.

    `torch.device("meta")` would apply to all tensors, but windows and
    filterbanks are computed from values.
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
    """Write `config.json` and `model.safetensors`; other files in the context.

    An interrupted write leaves the previous model, or a folder without
    `config.json`; never a mixture. Files that are written in the context exist
    before `config.json` does.

    Arguments
    ---------
    folder : Path
        Created if missing.
    config : dict
        The configuration.
    weights : dict
        Tensors by name.

    Yields
    ------
    None
        After the weights are written.
    """
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in weights.items()
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    # config.json is written last: it marks a complete model.
    with atomic_path(folder / CONFIG_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
        with atomic_path(folder / WEIGHTS_FILE) as temporary:
            save_file(weights, temporary, metadata=METADATA)
            (folder / CONFIG_FILE).unlink(missing_ok=True)
        yield


def read_weights(
    path: str | Path, device: str = "cpu", parts: Sequence[str] | None = None
) -> Weights:
    """Read a safetensors file, tensors by name.

    `device` "meta" reads only the shapes; `parts` selects roles of a codec.
    Raises CheckpointError if the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        pickled = pickled_weights(path)
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
    """Open a safetensors file; raise CheckpointError if it is damaged."""
    try:
        with safe_open(path, "pt", device="cpu") as stream:
            yield stream
    # RuntimeError and TypeError: sizes or types that PyTorch lacks.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as e:
        raise CheckpointError(
            f"{path}: no readable safetensors file ({e}); fetch or export it "
            "again"
        ) from None


def fingerprint_of(
    config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> str:
    """SHA-256 (hex) of a configuration (JSON-able) and weights by name."""
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
        Receives the weights of its parts, in its own precision.
    path : str or Path
        `model.safetensors`.

    Raises
    ------
    CheckpointError
        If the file is damaged, or a weight is missing, unexpected or of
        another shape; the message names it.
    """
    # With all parts, a weight that belongs to no part is an error.
    parts = codec.parts if len(codec.parts) < len(ROLES) else None
    weights = read_weights(path, parts=parts)
    load_state(codec, upgrade_names(weights, path), path)


def read_parts(
    config: CodecConfig, path: Path, parts: Sequence[str]
) -> Weights:
    """Read the weights of some parts of a codec.

    Returns tensors by name, in the precision of a complete codec.
    """
    expected = _outline(config).state_dict()
    weights = read_weights(path, parts=parts)
    return {
        name: value.to(expected[name].dtype)
        for name, value in upgrade_names(weights, path).items()
    }


def load_state(module: nn.Module, weights: Weights, source: str | Path) -> None:
    """Load weights with the names of this package, strictly.

    Weights are cast to the module's precision. Raises CheckpointError if one is
    missing, unexpected, of another shape or not finite; `source` is named in
    the message.
    """
    check_state(module, weights, source)
    expected = module.state_dict()
    # In the module's precision: a cast may overflow.
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
    """Raise CheckpointError if names, shapes or dtypes do not match."""
    problems: dict[str, list[str]] = {}
    for _, (label, text) in sorted(_misfits(module, weights).items()):
        problems.setdefault(label, []).append(text)
    if problems:
        texts = [
            f"{label}: {abridge(problems[label])}"
            for label in sorted(problems, key=MISFITS.index)
        ]
        raise CheckpointError(f"{source}: {'; '.join(texts)}")


def _misfits(module: nn.Module, weights: Weights) -> dict[str, tuple[str, str]]:
    """The weights that do not match, by name: one of `MISFITS` and a text."""
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
