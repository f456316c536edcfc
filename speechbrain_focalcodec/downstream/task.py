"""Saves and loads trained tasks.

A task is a folder:

config.json         configuration, with a closed schema
model.safetensors   weights of all parts except the codec
tokenizer.model     pieces of text, if the task has text
hyperparams.yaml    for SpeechBrain's from_hparams, which executes it
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hyperpyyaml import dump_hyperpyyaml
from torch import nn

from speechbrain_focalcodec.checkpoint import (
    MetaWeights,
    check_state,
    load_state,
    read_weights,
    writing_model,
)
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.config import read_json
from speechbrain_focalcodec.downstream.front_ends import (
    FrontEnd,
    LogMelFrontEnd,
    TokenFrontEnd,
    make_front_end,
)
from speechbrain_focalcodec.downstream.learnt import TOKENIZER_FILE
from speechbrain_focalcodec.downstream.task_config import (
    FrontEndConfig,
    TaskConfig,
    TTSConfig,
    parse_task_config,
)
from speechbrain_focalcodec.downstream.text import TextTokenizer
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.model_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    resolve_source,
)
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = [
    "Task",
    "front_end_config",
    "load_task",
    "load_tokenizer",
    "load_weights",
    "save_task",
]

# Files on the hub; a task without text has no tokenizer.
TASK_FILES = (CONFIG_FILE, (TOKENIZER_FILE, CONFIG_FILE), WEIGHTS_FILE)

MAX_TABLE = 1 << 27  # values in a table of token vectors

#: Parts of a task that have weights.
PARTS = ("front_end", "network", "output", "model")

_HYPERPARAMS = """\
# Executed by from_hparams of speechbrain_focalcodec.downstream's interfaces.
# Their from_pretrained does not read it.
task: !new:speechbrain_focalcodec.downstream.task.Task
    config:
{config}
modules:
    task: !ref <task>

pretrainer: !new:speechbrain_focalcodec.hyperparams.WeightsPretrainer
    loadables:
{loadables}
    paths:
{paths}
    custom_hooks:
{hooks}
"""


class Task(nn.Module):
    """The parts of a task.

    Arguments
    ---------
    config : TaskConfig or dict
        Configuration.
    codec : FocalCodec, str or Path, optional
        The codec or its source; by default the one in the configuration.

    Raises
    ------
    ConfigError
        If the configuration is wrong, or the codec is not the one that the
        task was trained with.
    CheckpointError
        If the codec cannot be loaded.
    """

    def __init__(
        self,
        config: TaskConfig | dict[str, Any],
        codec: FocalCodec | str | Path | None = None,
    ):
        super().__init__()
        # Any: the keys depend on the task.
        parsed: Any = parse_task_config(config)
        self.config: Any = parsed
        #: Pieces of text; set by :func:`load_tokenizer`.
        self.tokenizer: TextTokenizer | None = None
        codec = _find_codec(parsed.front_end, codec)
        _check_tables(parsed, codec)
        self.front_end = _front_end(parsed.front_end, codec)
        if isinstance(parsed, TTSConfig):
            options = parsed.language_model.model_dump()
            kind = parsed.PARTS[options.pop("name")]
            self.model = kind(
                num_pieces=parsed.num_pieces,
                # From the codec if the configuration has none.
                codebook_size=self.front_end.codebook_size,
                speaker_dim=parsed.speaker_dim,
                **options,
            )
            return
        options = parsed.network.model_dump()
        kind = parsed.PARTS[options.pop("name")]
        network: Any = kind(input_dim=self.front_end.dim, **options)
        self.network = network
        self.output = nn.Linear(network.output_dim, parsed.num_outputs)


def _find_codec(
    config: FrontEndConfig, codec: FocalCodec | str | Path | None
) -> FocalCodec | None:
    """Load a front end's codec and check its fingerprint."""
    if config.input == "log_mel":
        return None
    codec = config.codec if codec is None else codec
    if codec is not None and not isinstance(codec, FocalCodec):
        try:
            codec = FocalCodec.from_pretrained(codec)
        except (CheckpointError, ConfigError) as error:
            raise type(error)(
                "the codec of this task cannot be loaded; pass its "
                f"source as codec=...: {error}"
            ) from error
    known = config.codec_fingerprint
    if codec is not None and known not in (None, codec.fingerprint):
        raise ConfigError(
            f"codec: {codec.name} is not the one that this task was trained "
            f"with ({config.codec}): its fingerprint differs"
        )
    return codec


def _check_tables(config: Any, codec: FocalCodec | None) -> None:
    """Limit the size of tables of token vectors before they are allocated."""
    front_end = config.front_end
    if front_end.input != "tokens":
        return
    size = front_end.codebook_size or getattr(codec, "codebook_size", 0)
    for part in (front_end, getattr(config, "language_model", front_end)):
        values = size * (part.dim or size.bit_length())
        if values > MAX_TABLE and not (part.freeze or part.tied_to_codes):
            raise ConfigError(
                f"a vector for each of {size} tokens has {values} values in "
                f"all, more than {MAX_TABLE}; use tied_to_codes"
            )


def _front_end(config: FrontEndConfig, codec: FocalCodec | None) -> FrontEnd:
    if config.input == "log_mel":
        return LogMelFrontEnd(config.sample_rate)
    options: dict[str, Any] = {}
    if config.input == "tokens":
        options = config.model_dump(
            exclude={"input", "codec", "codec_fingerprint"}
        )
    return make_front_end(config.input, codec, options)


def front_end_config(
    front_end: FrontEnd, hparams: dict[str, Any]
) -> dict[str, Any]:
    """Configuration of a recipe's front end, for `TaskConfig`.

    `hparams` has ``input``, ``codec_source`` and ``embedding``.
    """
    config: dict[str, Any] = {
        "input": hparams["input"],
        "sample_rate": front_end.sample_rate,
    }
    if front_end.codec is not None:
        source = str(hparams["codec_source"])
        if Path(source).is_dir():
            source = str(Path(source).resolve())
        config["codec"] = source
        config["codec_fingerprint"] = front_end.codec.fingerprint
    if isinstance(front_end, TokenFrontEnd):
        config["codebook_size"] = front_end.codebook_size
        config["token_rate"] = front_end.rate
        config.update(hparams.get("embedding") or {})
    return config


def save_task(
    folder: str | Path,
    config: TaskConfig,
    modules: dict[str, nn.Module],
    tokenizer: TextTokenizer | None = None,
) -> None:
    """Write a trained task to a folder, which is created if missing.

    `modules` are parts by their names in :class:`Task`; others are ignored. If
    writing is interrupted, the folder holds its old content or has no
    `config.json`.
    """
    folder = Path(folder)
    weights = {
        f"{part}.{name}": value
        for part, module in modules.items()
        if part in PARTS
        for name, value in module.state_dict().items()
    }
    data = config.to_dict()
    with writing_model(folder, data, weights):
        if tokenizer is not None:
            tokenizer.save(folder / TOKENIZER_FILE)
        atomic_write_text(
            folder / "hyperparams.yaml", _hyperparams(data, tokenizer)
        )


def _hyperparams(data: dict[str, Any], tokenizer: TextTokenizer | None) -> str:
    arguments = io.StringIO()
    dump_hyperpyyaml(data, arguments)
    lines = arguments.getvalue().splitlines()
    files = {"weights": WEIGHTS_FILE}
    if tokenizer is not None:
        files["tokenizer"] = TOKENIZER_FILE
    hook = "!name:speechbrain_focalcodec.downstream.task.load_"
    return _HYPERPARAMS.format(
        config=_lines(8, lines),
        loadables=_lines(8, (f"{key}: !ref <task>" for key in files)),
        paths=_lines(8, (f"{key}: {name}" for key, name in files.items())),
        hooks=_lines(8, (f"{key}: {hook}{key}" for key in files)),
    )


def _lines(indent: int, lines: Iterable[str]) -> str:
    return "\n".join(" " * indent + line for line in lines if line)


def load_weights(task: Task, path: str | Path) -> None:
    """Load a task's `model.safetensors`, strictly.

    Raises a CheckpointError if the file is damaged, or a weight is missing,
    unexpected, of another shape or not finite.
    """
    load_state(task, read_weights(path), path)


def load_tokenizer(task: Task, path: str | Path) -> None:
    """Load a task's `tokenizer.model`.

    Raises a CheckpointError if the file is damaged, or its number of pieces is
    not the task's.
    """
    tokenizer = TextTokenizer.load(path)
    if tokenizer.size != task.config.num_pieces:
        raise CheckpointError(
            f"{path}: has {tokenizer.size} pieces, the task's config.json "
            f"{task.config.num_pieces}"
        )
    task.tokenizer = tokenizer


def load_task(
    source: str | Path,
    revision: str | None = None,
    codec: FocalCodec | str | Path | None = None,
) -> Task:
    """Load a task in eval mode from a folder or a hub repository.

    The arguments and errors are those of
    :meth:`~speechbrain_focalcodec.downstream.interfaces.TaskInterface.from_pretrained`.
    """
    _, folder = resolve_source(source, revision, TASK_FILES)
    config = parse_task_config(
        read_json(folder / CONFIG_FILE), folder / CONFIG_FILE
    )
    codec = _find_codec(config.front_end, codec)
    path = folder / WEIGHTS_FILE
    # A small file can declare huge parts: compare before allocating.
    with MetaWeights():
        outline = Task(config, codec)
    check_state(outline, read_weights(path, device="meta"), path)
    task = Task(config, codec)
    load_weights(task, path)
    if hasattr(config, "num_pieces"):
        load_tokenizer(task, folder / TOKENIZER_FILE)
    return task.eval()
