"""A recipe's command, around its training: how it starts and how it ends.

What is wrong with the command, the YAML or the data ends it in one line and
with exit code 2. Until modules, checkpoint and data fit together nothing is
written that belongs to a run: a mistaken command leaves a finished run as it
is.
"""

import contextlib
import errno
import io
import logging
import logging.handlers
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from speechbrain.core import DEFAULT_LOG_CONFIG
from speechbrain.utils.checkpoints import CKPT_PREFIX
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import TqdmCompatibleStreamHandler

from speechbrain_focalcodec.errors import (
    ConfigError,
    FocalCodecError,
    abridge,
)
from speechbrain_focalcodec.training.yamls import (
    changed_keys,
    parse_overrides,
    resolve_yaml,
)
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["refuse_another_model", "run_recipe"]

logger = logging.getLogger(__name__)

HYPERPARAMS_FILE = "hyperparams.yaml"
# A --debug run has a folder of its own: the output folder's name and this.
DEBUG_SUFFIX = "_debug"
# Keys that say what a checkpoint's weights mean; not all show in their shapes.
MODEL_KEYS = {
    *(
        "brain",
        "trains",
        "model",
        "codec",
        "encoder_source",
        "modules",
        "sample_rate",
    ),
    *("input", "codec_source", "embedding", "front_end", "network", "label"),
    *("language_model", "tokenizer_kind", "tokenizer_size", "voices"),
}
# A stage's Brain in earlier versions, and what it trained. Now one Brain trains
# all stages, and their YAMLs list objectives.
EARLIER_BRAINS = {
    "DecoderBrain": ["decoder"],
    "QuantizerBrain": ["compressor", "decompressor"],
    "EndToEndBrain": ["compressor", "decompressor", "decoder"],
    "PositionBrain": ["positional_embedding"],
    "DistillationBrain": ["encoder"],
    "JointBrain": ["encoder", "compressor", "decompressor"],
    "PretrainingBrain": ["encoder"],
}
# They change with the place of the folder.
PLACES = {"output_folder", "save_folder", "train_log"}

# Trains and tests: takes hyperparameters, run options, and what to call once
# modules, checkpoint and data fit together.
Work = Callable[[dict[str, Any], Any, Callable[[], None]], None]


def run_recipe(work: Work, arguments: Sequence[str]) -> None:
    """Run a recipe's command.

    Arguments
    ---------
    work : callable
        Prepares the data, trains and tests. It is called with the
        hyperparameters, SpeechBrain's run options, and a function without
        arguments that it must call before it writes into the output folder:
        this leaves `hyperparams.yaml`, the script, `env.log` and `log.txt`.
    arguments : sequence of str
        The command line: a YAML and SpeechBrain's options.

    Raises
    ------
    SystemExit
        After one line on stderr: with 2 where the training has not begun,
        with 1 where bad data or a full disk has ended it, with 130 or 143
        where Ctrl-C or SIGTERM has.
    """
    state: dict[str, Any] = {"begun": False, "debug": False, "save": None}
    with _signals(), _early_log() as early:
        try:
            path, run_opts, given = _parse(arguments)
            state["debug"] = run_opts["debug"]
            text = _resolve(path, given, run_opts)
            places = YAML().load(text)
            folder = Path(places["output_folder"])
            state["save"] = Path(places["save_folder"])
            changed = refuse_another_model(folder, state["save"], text)
            sb.utils.distributed.ddp_init_group(run_opts)
            hparams = _load(path, text)

            def begin() -> None:
                run_on_main(_begin, args=[folder, path, text, early])
                state["begun"] = True
                if changed:
                    logger.warning(
                        "%s goes on with other values than at its last "
                        "start: %s",
                        folder,
                        abridge(_shown(changed), "; ", most=10),
                    )

            work(hparams, run_opts, begin)
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else signal.SIGINT
            if _is_first():
                print(_kept(state), file=sys.stderr)
            raise SystemExit(128 + number) from error
        except Exception as error:
            _end(error, state)


def refuse_another_model(
    folder: Path, save_folder: Path, text: str
) -> dict[str, str]:
    """Compare a YAML with that of the run that a folder holds.

    Arguments
    ---------
    folder : Path
        Output folder.
    save_folder : Path
        Where its checkpoints are.
    text : str
        The resolved YAML.

    Returns
    -------
    dict
        What has changed, by key; nothing where there is no checkpoint to go
        on from.

    Raises
    ------
    ConfigError
        If what has changed is the model.
    """
    old = folder / HYPERPARAMS_FILE
    if not old.is_file() or not any(save_folder.glob(f"{CKPT_PREFIX}*")):
        return {}
    changed = {
        key: change
        for key, change in _since_earlier_brains(
            changed_keys(old.read_text(encoding="utf-8"), text)
        ).items()
        if key not in PLACES
    }
    other = {
        key: change
        for key, change in changed.items()
        if key.partition(".")[0] in MODEL_KEYS
    }
    if other:
        raise ConfigError(
            f"{folder} holds a training of another model "
            f"({abridge(_shown(other), '; ')}): give the old values to go on "
            "with it, or another --output_folder; nothing was changed"
        )
    return changed


def _since_earlier_brains(changed: dict[str, str]) -> dict[str, str]:
    """Changes without those from a Brain of earlier versions to today's."""
    brain = changed.get("brain", "").partition(" -> ")[0].rpartition(".")[2]
    if changed.get("trains") != f"nothing -> {EARLIER_BRAINS.get(brain)}":
        return changed
    return {
        key: change
        for key, change in changed.items()
        if key.partition(".")[0] not in {"brain", "trains", "objectives"}
    }


def _parse(arguments: Sequence[str]) -> tuple[str, Any, dict[str, Any]]:
    """The YAML's path, SpeechBrain's options and the YAML's keys."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            path, run_opts, overrides = sb.parse_arguments(list(arguments))
    except SystemExit as error:
        if not error.code:
            raise  # --help
        reason = told.getvalue().strip().splitlines()[-1]
        raise ConfigError(reason.partition("error: ")[2] or reason) from error
    device = run_opts["device"]
    if device is not None:
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--device={device}: cannot be used here ({reason}); try cpu"
            ) from error
    return path, run_opts, parse_overrides(overrides)


def _resolve(path: str, given: dict[str, Any], run_opts: Any) -> str:
    text = resolve_yaml(path, given)
    if run_opts["debug"]:
        folder = str(YAML().load(text)["output_folder"]).rstrip("/")
        given = {**given, "output_folder": folder + DEBUG_SUFFIX}
        text = resolve_yaml(path, given)
    return text


def _load(path: str, text: str) -> dict[str, Any]:
    try:
        return load_hyperpyyaml(text)
    except FocalCodecError:
        raise
    except Exception as error:
        # HyperPyYAML puts the reason below what it could not make.
        cause = error.__cause__
        reason = f"{error} ({cause})" if cause is not None else str(error)
        raise ConfigError(f"{path}: {reason}") from error


def _begin(folder: Path, path: str, text: str, early: "_EarlyLog") -> None:
    """Leave what was run, where and how, and log into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    origin = f"# Generated {date.today()} from:\n# {Path(path).resolve()}\n"
    atomic_write_text(
        folder / HYPERPARAMS_FILE, f"{origin}# yamllint disable\n{text}"
    )
    script = Path(sys.argv[0])
    if script.is_file():
        shutil.copy(script, folder)
    early.go_on_in(folder / "log.txt")
    atomic_write_text(
        folder / "env.log", sb.utils.logger.get_environment_description()
    )


class _EarlyLog(logging.handlers.MemoryHandler):
    """Keeps what is logged until there is a file for it."""

    def __init__(self) -> None:
        super().__init__(capacity=sys.maxsize, flushLevel=sys.maxsize)

    def go_on_in(self, file: Path) -> None:
        """Log as SpeechBrain does, beginning with what was kept."""
        overrides = {"handlers": {"file_handler": {"filename": str(file)}}}
        sb.utils.logger.setup_logging(DEFAULT_LOG_CONFIG, overrides)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                self.setTarget(handler)
        self.flush()
        sb.utils.quirks.log_applied_quirks()
        logger.info("Experiment folder: %s", file.parent)


@contextlib.contextmanager
def _early_log() -> Iterator[_EarlyLog]:
    """Show what is logged before the output folder may be written to."""
    root, early = logging.getLogger(), _EarlyLog()
    level, handlers = root.level, root.handlers[:]
    if _is_first():
        console = TqdmCompatibleStreamHandler(sys.stdout)
        console.setLevel(logging.INFO)
        console.setFormatter(logging.Formatter("%(name)s - %(message)s"))
        root.setLevel(logging.DEBUG)
        root.handlers += [console, early]
    try:
        yield early
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM, which batch systems send, end a run as Ctrl-C does."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(state: dict[str, Any]) -> str:
    """What a run that was stopped has kept, and how to go on."""
    if state["debug"]:
        return "stopped: a --debug run cannot be resumed"
    save = state["save"]
    kept = [] if save is None else sorted(save.glob(f"{CKPT_PREFIX}*"))
    if not kept:
        return (
            "stopped: no checkpoint was written yet, so the same command "
            "begins anew (--ckpt_interval_minutes=N writes some within an "
            "epoch)"
        )
    return f"stopped: {kept[-1]} is kept; the same command goes on from there"


def _end(error: Exception, state: dict[str, Any]) -> NoReturn:
    """Tell an error in one line, or let a defect keep its traceback."""
    begun = state["begun"]
    line = " ".join(str(error).split())
    if _is_disk_full(error, state["save"]):
        line = (
            f"the disk of {state['save']} is full: free some space and give "
            "the same command again"
        )
        # log.txt is there too.
        logging.raiseExceptions = False
    elif begun and not isinstance(error, FocalCodecError | OSError):
        logger.critical("Exception:", exc_info=error)
        raise SystemExit(1) from error
    elif not isinstance(error, FocalCodecError | ValueError | OSError):
        line = f"{type(error).__name__}: {line} (--debug prints the traceback)"
    if state["debug"]:
        traceback.print_exception(error)
    logger.debug("Exception:", exc_info=error)
    # What is wrong at the start all processes see.
    if begun or _is_first():
        print(f"error: {line}", file=sys.stderr)
    raise SystemExit(1 if begun else 2) from error


def _is_first() -> bool:
    """Whether this is the main process, before they know of each other."""
    return os.environ.get("RANK", "0") == "0"


def _is_disk_full(error: Exception, folder: Path | None) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # torch says no more than that it could not write.
    if folder is None or not folder.is_dir():
        return False
    return (
        isinstance(error, RuntimeError)
        and shutil.disk_usage(folder).free < 2**16
    )


def _shown(changed: dict[str, str]) -> list[str]:
    return [f"{key}: {change}" for key, change in changed.items()]
