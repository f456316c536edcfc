"""Loads weights from runs of earlier stages and from models.

A run is the output folder of a stage or of a published recipe. Its best
checkpoint (the last one with a discriminator) holds the trained parts. A model
is a bundled name, a folder or a hub repository, and holds all parts. Options
that the shapes of weights do not show, and the encoder that a part was trained
on, are compared too. Options in `CHOSEN` follow the model YAML.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_focalcodec import checkpoint, model_files
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.config import (
    CodecConfig,
    as_saved_before,
    read_json,
)
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.hub import RELEASES, is_repository
from speechbrain_focalcodec.modules import weight_names
from speechbrain_focalcodec.modules.part_configs import VERSIONS
from speechbrain_focalcodec.training.checkpointing import (
    RANK,
    AtomicCheckpointer,
)
from speechbrain_focalcodec.training.published import (
    FILES,
    best_checkpoint,
    read_options,
)

__all__ = [
    "PARTS",
    "Source",
    "find_sources",
    "is_run",
    "load_module",
    "load_parts",
]

logger = get_logger(__name__)

# Folder of the checkpoints in a stage's output folder.
SAVE_FOLDER = "save"
# Parts that can be loaded separately, and their places in a codec.
PARTS = {
    "encoder": "encoder",
    "positional_embedding": "encoder.encoder.positional_embedding",
    "compressor": "compressor",
    "decompressor": "decompressor",
    "decoder": "decoder",
}
# Optional file of a model, for further training.
DISCRIMINATOR = "discriminator"
DISCRIMINATOR_FILE = "discriminator.safetensors"

# Options that do not change a part's output.
UNUSED = {
    "max_cached_steps",
    "use_flex_attention",
    "dropout",
    "layerscale_init",
    "tanhscale_init",
}
# Options that the model YAML may change: training adapts the weights.
CHOSEN = {"fade"}
# Options that only matter for causal parts.
CAUSAL = {"causal", "window_size", "last_window_size", "lookahead_size"}
# Options in which a causal student may differ from its full-context teacher.
DIRECTION = {"causal", "window_size", "lookahead_size"}


@dataclass(frozen=True)
class Source:
    """A run or a model to load weights from.

    `folder` is a run's checkpoint or a model's folder, `config` the options of
    the codec in the layout of `config.json` (a published recipe may lack
    some), `file` the file name of a model's weights.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    is_run: bool
    published: bool = False
    file: str = model_files.WEIGHTS_FILE

    @property
    def parts(self) -> list[str]:
        """Names of its parts."""
        if self.is_run:
            return [part for part in PARTS if self.has(part)]
        return [part for part, path in PARTS.items() if "." not in path]

    def has(self, name: str) -> bool:
        """Whether it has the weights of a part or of the discriminator."""
        if self.is_run:
            return self._file(name).is_file()
        if name == DISCRIMINATOR:
            return (self.folder / DISCRIMINATOR_FILE).is_file()
        return name in self.parts

    def _file(self, name: str) -> Path:
        """File of a run's module; the expected path if it is missing."""
        names = FILES.get(name, (name,)) if self.published else (name,)
        paths = [self.folder / f"{name}.ckpt" for name in names]
        return next((path for path in paths if path.is_file()), paths[-1])

    def weights(self, name: str) -> checkpoint.Weights:
        """Read the weights of a module; CheckpointError if that fails."""
        if self.is_run:
            path = self._file(name)
            try:
                # Reads tensors only.
                found = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                raise CheckpointError(
                    f"{path}: cannot be read: {error}"
                ) from error
            if not self.published:
                return found
            return _upgrade(found, name, path)
        if name == DISCRIMINATOR:
            return checkpoint.read_weights(self.folder / DISCRIMINATOR_FILE)
        path = self.folder / self.file
        found = weight_names.upgrade_names(checkpoint.read_weights(path), path)
        return {
            key.removeprefix(f"{name}."): value
            for key, value in found.items()
            if key.startswith(f"{name}.")
        }


def find_sources(names: str | Path | Iterable[str | Path]) -> list[Source]:
    """Find runs (output folders of stages) and models by their names.

    CheckpointError or ConfigError if one does not exist or has no checkpoint.
    """
    names = [names] if isinstance(names, str | Path) else names
    return [_find_source(name) for name in names]


def is_run(name: str | Path) -> bool:
    """Whether a name is that of a folder without a model."""
    folder = Path(name).expanduser()
    return folder.is_dir() and not (folder / model_files.WEIGHTS_FILE).is_file()


def _find_source(name: str | Path) -> Source:
    folder = Path(name).expanduser()
    if not is_run(name):
        # A mistyped results/decoder looks like a hub repository.
        slip = is_repository(str(name)) and str(name) not in RELEASES
        if slip and not folder.is_dir() and folder.parent.is_dir():
            raise CheckpointError(
                f"{name}: no such folder in {folder.parent}; give the output "
                "folder of a training, or a model"
            )
        files = model_files.find_model(str(name))
        config = checkpoint.match_config(files).model_dump()
        folder, file = files.weights.parent, files.weights.name
        return Source(str(name), folder, config, is_run=False, file=file)
    save, best = folder / SAVE_FOLDER, None
    if save.is_dir() and not (folder / model_files.CONFIG_FILE).is_file():
        return Source(
            str(name), best_checkpoint(save), read_options(folder), True, True
        )
    if save.is_dir():
        checkpointer = AtomicCheckpointer(save)
        # Earlier versions wrote no rank.
        best = checkpointer.find_checkpoint(
            min_key=RANK
        ) or checkpointer.find_checkpoint(min_key="loss")
    if best is None:
        raise CheckpointError(
            f"{save}: no checkpoint with a validation loss; give the output "
            "folder of a training that has finished an epoch (a --debug run "
            "keeps its own only with --debug_persistently), or a model folder"
        )
    path = folder / model_files.CONFIG_FILE
    data = as_saved_before(read_json(path))
    # A run of the user may have custom parts.
    parsed = CodecConfig.parse(data, path, VERSIONS[0], own_parts=True)
    return Source(str(name), best.path, parsed.model_dump(), is_run=True)


def _upgrade(found: Any, name: str, path: Path) -> checkpoint.Weights:
    """Weights of a published recipe under our names."""
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor)
        for key, value in found.items()
    ):
        raise CheckpointError(f"{path}: is no table of weights by name")
    weights = {f"{name}.{key}": value for key, value in found.items()}
    return {
        key.removeprefix(f"{name}."): value
        for key, value in weight_names.upgrade_names(weights, path).items()
    }


def load_parts(
    codec: FocalCodec,
    sources: Sequence[Source],
    required: Iterable[str] = (),
) -> dict[str, Source]:
    """Load all parts of the sources; later sources win.

    Returns the source of each loaded part. CheckpointError if a required part
    is missing or one does not fit.
    """
    chosen: dict[str, Source] = {}
    for source in sources:
        for part in source.parts:
            chosen.pop(part, None)
            chosen[part] = source
    missing = [part for part in required if part not in chosen]
    if missing:
        names = ", ".join(source.name for source in sources) or "nothing"
        raise CheckpointError(
            f"start_from has {names}: no trained {' and no '.join(missing)}; "
            "add the output folder of the stage that trains it, or a model"
        )
    for part, source in chosen.items():
        check_fit(source, codec.config, part)
        module = codec.get_submodule(PARTS[part])
        weights = source.weights(part)
        if part == "decompressor":
            weights = _fit_refiner(module, weights)
        checkpoint.load_state(module, weights, f"{source.name} ({part})")
    return chosen


def load_module(
    module: nn.Module, sources: Sequence[Source], name: str = DISCRIMINATOR
) -> Source | None:
    """Load a module beside the codec from the last source that has it.

    Returns the source, or None if no source has the module.
    """
    found = [source for source in sources if source.has(name)]
    if not found:
        return None
    source = found[-1]
    label = f"{source.name} ({name})"
    checkpoint.load_state(module, source.weights(name), label)
    return source


def check_fit(source: Source, config: CodecConfig, part: str) -> None:
    """Raise a CheckpointError if options of a part or its encoder differ.

    Differences in `CHOSEN` options are logged. Options that the source does not
    have are not compared.
    """
    role = part if part != "positional_embedding" else "encoder"
    # A decompressor's refiner can be added or removed.
    extra = {"lookahead_size"} if role == "decompressor" else set()
    _compare(source, config, role, UNUSED | extra, f"its {part} with")
    if role != "encoder":
        wavlm = config.encoder_name == "WavLM"
        ignored = UNUSED | (DIRECTION if wavlm else set())
        what = f"the {part} was trained on an encoder with"
        _compare(source, config, "encoder", ignored, what)


def _compare(
    source: Source, config: CodecConfig, role: str, ignored: set, what: str
) -> None:
    if f"{role}_config" not in source.config:
        return
    theirs = _options(source.config, role)
    ours = _options(config.model_dump(), role)
    if not theirs.get("causal") and not ours.get("causal"):
        ignored = ignored | CAUSAL
    for key in sorted(theirs.keys() | ours.keys()):
        if key in ignored or theirs.get(key) == ours.get(key):
            continue
        if key in CHOSEN:
            logger.warning(
                "%s: %s %s %r; using the model's, %r",
                *(source.name, what, key, theirs.get(key), ours.get(key)),
            )
            continue
        raise CheckpointError(
            f"{source.name}: {what} {key} {theirs.get(key)!r:.80}, "
            f"the model's {role} has {ours.get(key)!r:.80}; use the model "
            "YAML that it was trained with"
        )


def _options(config: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Name and options of a part."""
    return {"name": config[f"{role}_name"], **config[f"{role}_config"]}


def _fit_refiner(
    module: nn.Module, weights: checkpoint.Weights
) -> checkpoint.Weights:
    """Add or remove the refiner's weights of a decompressor.

    A streaming model's quantizer stage trains without refiner; the joint stage
    starts with a refiner whose output is zero.
    """
    expected = module.state_dict()
    names = [name for name in expected if name.startswith("refiner.")]
    kept = {
        name: value
        for name, value in weights.items()
        if names or not name.startswith("refiner.")
    }
    if any(name in kept for name in names):
        return kept
    # The refiner adds the output of its last layer.
    last = {f"refiner.out_proj.{kind}" for kind in ("weight", "bias")}
    added = {
        name: torch.zeros_like(expected[name])
        if name in last
        else expected[name].clone()
        for name in names
    }
    return {**kept, **added}
