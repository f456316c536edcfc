"""Output folders of the SpeechBrain recipes of FocalCodec's authors.

These are LibriTTS/focalcodec and LibriTTS/focalcodec-stream. They have no
`config.json`; options are read from `hyperparams.yaml` as text, without making
any object.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from speechbrain_focalcodec.config import parse_model
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.parts import PARTS
from speechbrain_focalcodec.training.checkpointing import AtomicCheckpointer

__all__ = ["FILES", "best_checkpoint", "read_options"]

# Names of the parts in the recipes' checkpoints, the preferred one first.
FILES = {
    "encoder": ("student_encoder", "encoder"),
    "positional_embedding": ("student_posemb",),
    "compressor": ("compressor",),
    "decompressor": ("decompressor",),
    "decoder": ("generator",),
    "discriminator": ("discriminator",),
}
HYPERPARAMS = "hyperparams.yaml"
CLASSES = {
    "focalcodec.wavlm.WavLM": ("encoder", "WavLM"),
    "focalcodec.focalnet.FocalEncoder": ("compressor", "FocalEncoder"),
    "focalcodec.focalnet.FocalDecoder": ("decompressor", "FocalDecoder"),
    "focalcodec.vocos.Vocos": ("decoder", "Vocos"),
    "focalcodec.wavenext.WaveNeXt": ("decoder", "WaveNeXt"),
}
QUANTIZER = "speechbrain.lobes.models.bsq.BinarySphericalQuantizer"


def best_checkpoint(save_folder: str | Path) -> Path:
    """Folder of the checkpoint that a published recipe tests at its end.

    The last epoch's if there is a decoder, else that with the lowest validation
    loss. CheckpointError if there is none, or it has no part of a codec.
    """
    save = Path(save_folder)
    found = None
    if save.is_dir():
        checkpointer = AtomicCheckpointer(save)
        adversarial = next(save.glob("CKPT*/generator.ckpt"), None) is not None
        try:
            if adversarial:
                found = checkpointer.find_checkpoint(max_key="epoch")
            else:
                found = checkpointer.find_checkpoint(min_key="loss")
            # A checkpoint within an epoch has neither key.
            found = found or checkpointer.find_checkpoint()
        except TypeError as error:
            raise CheckpointError(
                f"{save}: epoch or loss in a CKPT.yaml is no number"
            ) from error
    if found is None:
        raise CheckpointError(
            f"{save}: no checkpoint, that is no folder CKPT+... with a "
            "CKPT.yaml; give the output folder of a training that has "
            "finished an epoch"
        )
    names = [name for names in FILES.values() for name in names]
    if not any((found.path / f"{name}.ckpt").is_file() for name in names):
        raise CheckpointError(
            f"{found.path}: has no part of a codec, that is none of "
            f"{', '.join(f'{name}.ckpt' for name in names)}"
        )
    return found.path


def read_options(folder: str | Path) -> dict[str, Any]:
    """Options of the parts in a recipe's `hyperparams.yaml`.

    In the layout of `config.json`; empty if there is no file. ConfigError if
    the file is not valid YAML, or an option is unknown or has no value.
    """
    path = Path(folder) / HYPERPARAMS
    if not path.is_file():
        return {}
    try:
        tree = YAML().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    found: dict[str, Any] = {}
    nodes = tree.items() if isinstance(tree, dict) else ()
    # In a streaming stage the student must overwrite the teacher.
    for key, node in sorted(nodes, key=lambda x: "student" in str(x[0])):
        if not isinstance(node, dict):
            continue
        tag = getattr(getattr(node, "tag", None), "value", None) or ""
        name = tag.removeprefix("!new:")
        options = {
            str(option): _plain(value, f"{path}: {key}.{option}")
            for option, value in node.items()
        }
        if name in CLASSES:
            role, kind = CLASSES[name]
        elif name == QUANTIZER and "code_dim" in options:
            role, kind = "quantizer", "BinarySphericalQuantizer"
            bits = options["code_dim"]
            if not isinstance(bits, int) or not 1 <= bits <= 24:
                raise ConfigError(f"{path}: {key}.code_dim must be 1 to 24")
            options = {"codebook_size": 2**bits}
        else:
            continue
        part = parse_model(PARTS[role][kind].config, options, f"{path}: {key}")
        found[f"{role}_name"] = kind
        found[f"{role}_config"] = part.model_dump()
    return found


def _plain(value: Any, what: str) -> Any:
    """Check that a value is a number, text, flag or list of these."""
    if isinstance(value, list):
        return [_plain(x, what) for x in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"{what}: is no value; give the {HYPERPARAMS} that a training has "
        "written into its output folder"
    )
