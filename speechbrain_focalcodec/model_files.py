"""Finds models: bundled ones, in folders, on the Hugging Face hub."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechbrain_focalcodec import hub
from speechbrain_focalcodec.errors import CheckpointError

__all__ = [
    "BUNDLED_MODELS",
    "CONFIG_FILE",
    "DEFAULT_CAUSAL_MODEL",
    "DEFAULT_MODEL",
    "ModelFiles",
    "WEIGHTS_FILE",
    "bundled_models",
    "find_model",
    "offline_message",
    "pickled_weights",
    "resolve_source",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SUFFIX = ".safetensors"
# Suffixes of pickled weights, which can run code when they are read.
PICKLES = (".pt", ".pth", ".bin")
DEFAULT_MODEL = "focalcodec_mini_50hz"
# For streaming.
DEFAULT_CAUSAL_MODEL = "focalcodec_mini_50hz_causal"
BUNDLED_MODELS = Path(__file__).parent / "models"


def resolve_source(
    source: str | Path,
    revision: str | None = None,
    names: Sequence[str | Sequence[str]] = hub.MODEL_FILES,
    options: hub.HubOptions | None = None,
) -> tuple[str, Path]:
    """Find a model's folder; fetch it from the hub if needed.

    Arguments
    ---------
    source : str or Path
        Name of a bundled model, local folder or hub repository.
    revision : str, optional
        Hub only: commit, tag or branch.
    names : sequence of str
        Hub only: files to fetch, see :func:`speechbrain_focalcodec.hub.fetch`.
    options : dict, optional
        Hub only: see :class:`speechbrain_focalcodec.hub.HubOptions`.

    Returns
    -------
    name : str
        Name of the model.
    folder : Path
        Folder with the files.

    Raises
    ------
    CheckpointError
        If there is no such model, it cannot be fetched, or a revision is
        given for a local one.
    """
    text = os.fspath(source)
    folder = Path(os.path.expanduser(text))
    # Path.is_dir raises if the name is too long.
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
    """Name, configuration and weights of a codec; weights may be missing."""

    name: str
    config: Path
    weights: Path


def find_model(
    source: str | Path,
    revision: str | None = None,
    options: hub.HubOptions | None = None,
) -> ModelFiles:
    """Find a codec's files; fetch them from the hub if needed.

    Arguments
    ---------
    source : str or Path
        As for :meth:`FocalCodec.from_pretrained`.
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
        If there is no such model, it cannot be fetched, or a revision is
        given for a local one.
    """
    text = os.fspath(source)
    path = Path(os.path.expanduser(text))
    if path.suffix == ".json" and os.path.isfile(path):
        _check_no_revision(path, revision)
        name = path.stem
        if path.name == CONFIG_FILE:
            name = path.resolve().parent.name
        return ModelFiles(
            name, path, _find_weights(path, _weights_names(path.name))
        )
    match = hub.split_file(text) if isinstance(source, str) else None
    if match is None or os.path.isdir(path.parent):
        name, folder = resolve_source(source, revision, options=options)
        config = folder / CONFIG_FILE
        names = (WEIGHTS_FILE, *_weights_names(CONFIG_FILE))
        return ModelFiles(name, config, _find_weights(config, names))
    repository, file = match
    names = _weights_names(file)
    folder = hub.fetch(
        repository, revision, (file, names), options, hub.PATIENCE
    )
    return ModelFiles(text, folder / file, _find_weights(folder / file, names))


def _weights_names(config: str) -> tuple[str, ...]:
    """Possible names of the weights of a configuration."""
    names = (Path(config).with_suffix(WEIGHTS_SUFFIX).name,)
    return (*names, WEIGHTS_FILE) if config == CONFIG_FILE else names


def _find_weights(config: Path, names: Sequence[str]) -> Path:
    """The first existing weights file beside a configuration."""
    paths = [config.with_name(name) for name in names]
    found = [path for path in paths if path.exists()]
    pickled = [path for path in paths if pickled_weights(path) is not None]
    return [*found, *pickled, paths[-1]][0]


def pickled_weights(path: Path) -> Path | None:
    """Pickled weights in place of a safetensors file, or None."""
    others = (path.with_suffix(suffix) for suffix in PICKLES)
    return next(filter(Path.is_file, others), None)


def bundled_models() -> list[str]:
    """Names of the models in the package, sorted."""
    return sorted(
        path.parent.name for path in BUNDLED_MODELS.glob("*/config.json")
    )


def offline_message(name: str) -> str:
    """Message: an offline model cannot stream, and which models can."""
    return hub.offline_message(name, bundled_models())
