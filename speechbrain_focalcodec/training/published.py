"""Output folders of the SpeechBrain recipes that FocalCodec's authors publish.

LibriTTS/focalcodec and LibriTTS/focalcodec-stream. They hold no `config.json`:
the options of their parts are those that `hyperparams.yaml` gives to the
published classes. It is read as text; nothing that it names is made.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from speechbrain_focalcodec.config import parse_model
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.parts import PARTS
from speechbrain_focalcodec.training.checkpointing import AtomicCheckpointer

__all__ = ["FILES", "best_checkpoint", "read_options"]

# What the recipes call the parts of a checkpoint, the preferred name first.
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
    """Find the checkpoint that a published recipe tests in the end.

    That of the last epoch where there is a decoder, else that of the lowest
    validation loss.

    Arguments
    ---------
    save_folder : str or Path
        The recipe's ``save``.

    Returns
    -------
    Path
        The checkpoint's folder.

    Raises
    ------
    CheckpointError
        If there is none, or none has a part of a codec.

    Example
    -------
    >>> best_checkpoint("nowhere/save")
    Traceback (most recent call last):
    speechbrain_focalcodec.errors.CheckpointError: nowhere/save: no ...
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
            # One that was made within an epoch has neither key.
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
    """Read the options of the parts from a recipe's `hyperparams.yaml`.

    Arguments
    ---------
    folder : str or Path
        Output folder of the recipe.

    Returns
    -------
    dict
        In the layout of `config.json`, for the parts that the file has;
        empty where there is no file.

    Raises
    ------
    ConfigError
        If the file is no YAML, or an option is not known or has no value.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "hyperparams.yaml").write_text(
    ...     "generator: !new:focalcodec.vocos.Vocos\\n  num_layers: 2\\n"
    ... )
    >>> options = read_options(folder)
    >>> options["decoder_name"], options["decoder_config"]["num_layers"]
    ('Vocos', 2)
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
    # A streaming stage has a teacher and its student, which comes last.
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
    """A number, text, flag or list of these; nothing with a tag."""
    if isinstance(value, list):
        return [_plain(x, what) for x in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"{what}: is no value; give the {HYPERPARAMS} that a training has "
        "written into its output folder"
    )
