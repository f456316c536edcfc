"""A recipe's run: command line, output folder, and errors in one line.

Mistakes in the command, the YAML or the data end a run with one line and exit
code 2. The output folder is not touched before modules, checkpoint and data
have been checked.
"""

import contextlib
import errno
import json
import logging
import logging.handlers
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import speechbrain as sb
from ruamel.yaml import YAML, YAMLError
from speechbrain.core import DEFAULT_LOG_CONFIG
from speechbrain.utils.checkpoints import CKPT_PREFIX
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import TqdmCompatibleStreamHandler

from speechbrain_focalcodec.config import CodecConfig
from speechbrain_focalcodec.errors import ConfigError, FocalCodecError, abridge
from speechbrain_focalcodec.model_files import CONFIG_FILE
from speechbrain_focalcodec.training.overrides import (
    check_overrides,
    parse_options,
    parse_overrides,
    resolve,
    tag_of,
)
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["Experiment", "changed_keys", "experiment"]

logger = logging.getLogger(__name__)

HYPERPARAMS_FILE = "hyperparams.yaml"
# Suffix of the output folder of a --debug run.
DEBUG_SUFFIX = "_debug"
# Keys that a resumed run must not change.
MODEL_KEYS = {
    *("trains", "encoder_source", "modules", "sample_rate", "input"),
    *("codec_source", "embedding", "front_end", "network", "label"),
    *("language_model", "tokenizer_kind", "tokenizer_size", "voices"),
}
# Paths, and the codec, which is compared by its config.json or codec_source.
NOT_COMPARED = {"output_folder", "save_folder", "train_log", "model", "codec"}


@contextlib.contextmanager
def experiment() -> Iterator["Experiment"]:
    """Run a recipe; errors and signals end it with one line.

    Yields
    ------
    Experiment
        Replaces ``sb.parse_arguments`` and
        ``sb.create_experiment_directory``.

    Raises
    ------
    SystemExit
        With exit code 2 if the training has not started, 1 if bad data or a
        full disk ended it, 130 or 143 after Ctrl-C or SIGTERM.
    """
    with _signals(), _early_log() as early:
        run = Experiment(early)
        try:
            yield run
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else signal.SIGINT
            if _is_first():
                print(run._kept(), file=sys.stderr)
            raise SystemExit(128 + number) from error
        except Exception as error:
            run._end(error)


class Experiment:
    """Command line and output folder of a recipe.

    Arguments
    ---------
    early : MemoryHandler
        Log records from before the output folder exists.
    """

    def __init__(self, early: logging.handlers.MemoryHandler):
        self._early = early
        self._begun = self._debug = False
        self._save_folder: Path | None = None
        self._changed: dict[str, str] = {}

    def parse_arguments(
        self, arguments: Sequence[str]
    ) -> tuple[str, Any, dict[str, Any]]:
        """Parse and check a command line, as ``sb.parse_arguments`` does.

        Arguments
        ---------
        arguments : sequence of str
            YAML, SpeechBrain's options and keys of the YAML.

        Returns
        -------
        hparams_file : str
            Path of the YAML.
        run_opts : RunOptions
            SpeechBrain's options.
        overrides : dict
            Overrides for ``load_hyperpyyaml``. ``--debug`` changes the output
            folder.

        Raises
        ------
        ConfigError
            If an option or key does not exist or has a value of another kind, a
            placeholder has no value, or the output folder has a run of another
            model.
        """
        path, run_opts, text = parse_options(arguments)
        overrides = parse_overrides(text)
        check_overrides(path, overrides)
        self._debug = run_opts["debug"]
        self._path, self._text = path, resolve(path, overrides)
        tree = YAML().load(self._text)
        if self._debug:
            folder = str(tree["output_folder"]).rstrip("/")
            overrides["output_folder"] = folder + DEBUG_SUFFIX
            self._text = resolve(path, overrides)
            tree = YAML().load(self._text)
        self._folder = Path(tree["output_folder"])
        self._save_folder = Path(tree["save_folder"])
        old = self._folder / HYPERPARAMS_FILE
        if old.is_file() and self._checkpoints():
            try:
                before = YAML().load(old.read_text(encoding="utf-8"))
            except YAMLError as error:
                raise ConfigError(f"{old}: is no YAML: {error}") from error
            self._changed = {
                key: change
                for key, change in changed_keys(before, tree).items()
                if key.partition(".")[0] not in NOT_COMPARED
            }
            # An earlier version's YAML may lack a key.
            compared = MODEL_KEYS & before.keys() & tree.keys()
            self._refuse(
                {
                    key: change
                    for key, change in self._changed.items()
                    if key.partition(".")[0] in compared
                }
            )
        return path, run_opts, overrides

    def create_directory(self, brain: Any) -> None:
        """Create the output folder when the training starts.

        It gets the files of ``sb.create_experiment_directory``:
        `hyperparams.yaml`, the script, `env.log` and `log.txt`.

        Arguments
        ---------
        brain : RecipeBrain
            Brain that will train.

        Raises
        ------
        ConfigError
            If the folder has a run of another codec.
        """
        old = self._folder / CONFIG_FILE
        if old.is_file() and self._checkpoints():
            text = old.read_text(encoding="utf-8")
            config = CodecConfig.parse(json.loads(text), own_parts=True)
            self._refuse(
                changed_keys(config.to_dict(), brain.codec.config.to_dict())
            )
        brain.at_start.append(self._begin)

    def _begin(self) -> None:
        run_on_main(self._write)
        self._begun = True
        if self._changed:
            logger.warning(
                "%s resumes with other values than before: %s",
                self._folder,
                abridge(_shown(self._changed), "; ", most=10),
            )

    def _write(self) -> None:
        """Write the run's YAML, script and environment; log into the folder."""
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(
            folder / HYPERPARAMS_FILE,
            f"# Generated {date.today()} from:\n# {Path(self._path).resolve()}"
            f"\n# yamllint disable\n{self._text}",
        )
        script = Path(sys.argv[0])
        if script.is_file():
            shutil.copy(script, folder)
        overrides = {
            "handlers": {"file_handler": {"filename": str(folder / "log.txt")}}
        }
        sb.utils.logger.setup_logging(DEFAULT_LOG_CONFIG, overrides)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                self._early.setTarget(handler)
        self._early.flush()
        sb.utils.quirks.log_applied_quirks()
        logger.info("Experiment folder: %s", folder)
        atomic_write_text(
            folder / "env.log", sb.utils.logger.get_environment_description()
        )

    def _checkpoints(self) -> list[Path]:
        folder = self._save_folder
        return sorted(folder.glob(f"{CKPT_PREFIX}*")) if folder else []

    def _refuse(self, changed: dict[str, str]) -> None:
        if changed:
            raise ConfigError(
                f"{self._folder} holds a training of another model "
                f"({abridge(_shown(changed), '; ')}): use the old values to "
                "resume it, or another --output_folder; nothing was changed"
            )

    def _kept(self) -> str:
        """Message of a stopped run: the last checkpoint, and how to resume."""
        if self._debug:
            return "stopped: a --debug run cannot be resumed"
        kept = self._checkpoints()
        if not kept:
            return (
                "stopped: no checkpoint was written yet, so the same command "
                "begins anew (--ckpt_interval_minutes=N writes some within an "
                "epoch)"
            )
        return f"stopped: {kept[-1]} is kept; the same command resumes from it"

    def _end(self, error: Exception) -> NoReturn:
        """Print an error as one line; a defect keeps its traceback."""
        line = " ".join(str(error).split())
        if _is_disk_full(error, self._save_folder):
            line = (
                f"the disk of {self._save_folder} is full: free some space "
                "and give the same command again"
            )
            # log.txt is on the same disk.
            logging.raiseExceptions = False
        elif self._begun and not isinstance(error, FocalCodecError | OSError):
            logger.critical("Exception:", exc_info=error)
            raise SystemExit(1) from error
        elif not isinstance(error, FocalCodecError | ValueError | OSError):
            # HyperPyYAML's errors have the reason as their cause.
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            name = type(error).__name__
            line = f"{name}: {line}{cause} (--debug prints the traceback)"
        if self._debug:
            traceback.print_exception(error)
        logger.debug("Exception:", exc_info=error)
        # Before the start all processes raise the same error.
        if self._begun or _is_first():
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1 if self._begun else 2) from error


def changed_keys(old: Mapping, new: Mapping) -> dict[str, str]:
    """Compare two resolved YAMLs, or two configurations.

    Returns "old -> new" by key (``outer.inner`` in tables). Values that changed
    by a reference to a changed top-level key are left out.
    """
    before, after = (dict(_leaves(tree, "", set())) for tree in (old, new))
    changed = {}
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            was, now = (x.get(key, "nothing") for x in (before, after))
            changed[key] = f"{was} -> {now}"
    followed = {change for key, change in changed.items() if "." not in key}
    return {
        key: change
        for key, change in changed.items()
        if "." not in key or change not in followed
    }


def _leaves(node: Any, name: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Values by dotted key; referenced tables only once."""
    tag = tag_of(node)
    if tag:
        yield name, tag
    if isinstance(node, dict):
        if id(node) in seen:
            return
        seen.add(id(node))
        # Sorted: a YAML may have its keys in another order than an old one.
        for key in sorted(node, key=str):
            yield from _leaves(node[key], f"{name}.{key}".lstrip("."), seen)
    elif isinstance(node, list | tuple):
        if any(isinstance(x, dict) for x in node):
            for number, child in enumerate(node):
                yield from _leaves(child, f"{name}.{number}", seen)
        else:
            yield name, str(list(node))
    elif node is not None and not tag:
        yield name, str(node)


def _shown(changed: dict[str, str]) -> list[str]:
    return [f"{key}: {change}" for key, change in changed.items()]


@contextlib.contextmanager
def _early_log() -> Iterator[logging.handlers.MemoryHandler]:
    """Print log records, and keep them until there is a log file."""
    root = logging.getLogger()
    early = logging.handlers.MemoryHandler(sys.maxsize, sys.maxsize)
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
    """Let SIGTERM, which batch systems send, stop a run like Ctrl-C."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_first() -> bool:
    """Whether this is the main process, before processes are connected."""
    return os.environ.get("RANK", "0") == "0"


def _is_disk_full(error: Exception, folder: Path | None) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # torch only reports that it could not write.
    if folder is None or not folder.is_dir():
        return False
    return (
        isinstance(error, RuntimeError)
        and shutil.disk_usage(folder).free < 2**16
    )
