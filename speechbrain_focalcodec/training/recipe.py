"""A recipe's command: its arguments, its output folder, and its end.

What is wrong with the command, the YAML or the data ends it in one line and
with exit code 2. Until modules, checkpoint and data fit together nothing is
written that belongs to a run: a mistaken command leaves a finished run as it
is.
"""

import contextlib
import copy
import difflib
import errno
import io
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
import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError
from speechbrain.core import DEFAULT_LOG_CONFIG
from speechbrain.utils.checkpoints import CKPT_PREFIX
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import TqdmCompatibleStreamHandler

from speechbrain_focalcodec.config import CodecConfig
from speechbrain_focalcodec.errors import ConfigError, FocalCodecError, abridge
from speechbrain_focalcodec.model_files import CONFIG_FILE
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["Experiment", "changed_keys", "experiment"]

logger = logging.getLogger(__name__)

HYPERPARAMS_FILE = "hyperparams.yaml"
# A --debug run has a folder of its own: the output folder's name and this.
DEBUG_SUFFIX = "_debug"
# Keys that say what a checkpoint's weights mean; not all show in their shapes.
MODEL_KEYS = {
    *("trains", "encoder_source", "modules", "sample_rate", "input"),
    *("codec_source", "embedding", "front_end", "network", "label"),
    *("language_model", "tokenizer_kind", "tokenizer_size", "voices"),
}
# They change with the place of the folder. A codec is compared by its
# config.json, and follows codec_source in a task.
NOT_COMPARED = {"output_folder", "save_folder", "train_log", "model", "codec"}
# Lists that may be given as the one name that they hold.
ONE_OR_MORE = {"freeze", "loggers", "start_from"}
# A value on the command line is of the kind of the YAML's.
KINDS = (
    (dict, "a table, as in '{name: value}'"),
    (list, "a list, as in [%s]"),
    (bool, "True or False"),
    ((int, float), "a number"),
    (str, "text"),
)


@contextlib.contextmanager
def experiment() -> Iterator["Experiment"]:
    """Run a recipe; errors and signals end it in one line.

    Yields
    ------
    Experiment
        Takes the place of ``sb.parse_arguments`` and of
        ``sb.create_experiment_directory``.

    Raises
    ------
    SystemExit
        After one line on stderr: with 2 where the training has not begun,
        with 1 where bad data or a full disk has ended it, with 130 or 143
        where Ctrl-C or SIGTERM has.
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
    """The command line and the output folder of a recipe.

    Arguments
    ---------
    early : MemoryHandler
        What was logged before there is an output folder.
    """

    def __init__(self, early: logging.handlers.MemoryHandler):
        self._early = early
        self._begun = self._debug = False
        self._save_folder: Path | None = None
        self._changed: dict[str, str] = {}

    def parse_arguments(
        self, arguments: Sequence[str]
    ) -> tuple[str, Any, dict[str, Any]]:
        """Parse a command line as ``sb.parse_arguments`` does, and check it.

        Arguments
        ---------
        arguments : sequence of str
            A YAML, SpeechBrain's options and keys of the YAML.

        Returns
        -------
        hparams_file : str
            The YAML.
        run_opts : RunOptions
            SpeechBrain's options.
        overrides : dict
            For ``load_hyperpyyaml``. With ``--debug`` the output folder has a
            name of its own.

        Raises
        ------
        ConfigError
            If an option or a key does not exist or has a value of another
            kind, a placeholder has no value, or the output folder holds a
            run of another model.
        """
        path, run_opts, text = _parse_options(arguments)
        overrides = _parse_overrides(text)
        _check_overrides(path, overrides)
        self._debug = run_opts["debug"]
        self._path, self._text = path, _resolve(path, overrides)
        tree = YAML().load(self._text)
        if self._debug:
            folder = str(tree["output_folder"]).rstrip("/")
            overrides["output_folder"] = folder + DEBUG_SUFFIX
            self._text = _resolve(path, overrides)
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

        That is once modules, checkpoint and data fit together. It holds what
        ``sb.create_experiment_directory`` leaves: `hyperparams.yaml`, the
        script, `env.log` and `log.txt`.

        Arguments
        ---------
        brain : RecipeBrain
            The Brain that will train.

        Raises
        ------
        ConfigError
            If the folder holds a run of another codec.
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
                "%s goes on with other values than at its last start: %s",
                self._folder,
                abridge(_shown(self._changed), "; ", most=10),
            )

    def _write(self) -> None:
        """Leave what was run, where and how, and log into the folder."""
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
                f"({abridge(_shown(changed), '; ')}): give the old values to "
                "go on with it, or another --output_folder; nothing was "
                "changed"
            )

    def _kept(self) -> str:
        """What a run that was stopped has kept, and how to resume it."""
        if self._debug:
            return "stopped: a --debug run cannot be resumed"
        kept = self._checkpoints()
        if not kept:
            return (
                "stopped: no checkpoint was written yet, so the same command "
                "begins anew (--ckpt_interval_minutes=N writes some within an "
                "epoch)"
            )
        return (
            f"stopped: {kept[-1]} is kept; the same command goes on from there"
        )

    def _end(self, error: Exception) -> NoReturn:
        """Tell an error in one line, or let a defect keep its traceback."""
        line = " ".join(str(error).split())
        if _is_disk_full(error, self._save_folder):
            line = (
                f"the disk of {self._save_folder} is full: free some space "
                "and give the same command again"
            )
            # log.txt is there too.
            logging.raiseExceptions = False
        elif self._begun and not isinstance(error, FocalCodecError | OSError):
            logger.critical("Exception:", exc_info=error)
            raise SystemExit(1) from error
        elif not isinstance(error, FocalCodecError | ValueError | OSError):
            # HyperPyYAML puts the reason below what it could not make.
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            name = type(error).__name__
            line = f"{name}: {line}{cause} (--debug prints the traceback)"
        if self._debug:
            traceback.print_exception(error)
        logger.debug("Exception:", exc_info=error)
        # What is wrong at the start all processes see.
        if self._begun or _is_first():
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1 if self._begun else 2) from error


def changed_keys(old: Mapping, new: Mapping) -> dict[str, str]:
    """What differs between two resolved YAMLs, or two configurations.

    Arguments
    ---------
    old, new : dict
        Trees.

    Returns
    -------
    dict
        By key (that of a table within a table is ``outer.inner``) what it was
        and what it is. A value that follows a changed key of the first level
        by a reference is left out.
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
    """Values by their dotted key; what is referred to twice, once."""
    tag = _tag(node)
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


def _tag(node: Any) -> str:
    """A node's own tag, such as ``!new:module.Class``, or nothing."""
    tag = getattr(getattr(node, "tag", None), "value", None) or ""
    return "" if tag.startswith("tag:yaml.org") else tag


def _shown(changed: dict[str, str]) -> list[str]:
    return [f"{key}: {change}" for key, change in changed.items()]


def _parse_options(arguments: Sequence[str]) -> tuple[str, Any, str]:
    """The YAML's path, SpeechBrain's options, and the YAML's keys as YAML."""
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
    return path, run_opts, overrides


def _parse_overrides(text: str) -> dict[str, Any]:
    try:
        overrides = YAML().load(text or "{}") or {}
    except MarkedYAMLError as error:
        lines = text.splitlines()
        option = lines[min(error.problem_mark.line, len(lines) - 1)]
        option = option.replace(": ", "=", 1)
        raise ConfigError(
            f"--{option} is no YAML: {error.problem.splitlines()[0]}"
        ) from error
    if not isinstance(overrides, dict):
        raise ConfigError(f"{text!r:.80} sets no key; give --KEY=VALUE")
    return overrides


def _check_overrides(path: str, overrides: dict[str, Any]) -> None:
    """Raise if a key is not the YAML's, has another kind, or is missing."""
    try:
        tree = YAML().load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: is no table of keys and values")
    for key, value in overrides.items():
        if key not in tree:
            options = [*tree, *sb.RunOptions().as_dict()]
            near = difflib.get_close_matches(key, options, n=1)
            keys = ", ".join(name for name in tree if name[0] != "_")
            hint = f"did you mean --{near[0]}?" if near else f"its keys: {keys}"
            raise ConfigError(f"{path}: has no {key!r} to set; {hint}")
        _check_kind(key, tree[key], value)
    missing = [
        f"--{key}=..."
        for key, value in tree.items()
        if _tag(value) == "!PLACEHOLDER" and key not in overrides
    ]
    if missing:
        raise ConfigError(f"{path}: add {' '.join(missing)} to the command")


def _check_kind(key: str, old: Any, new: Any) -> None:
    """Raise if HyperPyYAML cannot put a value in the place of another."""
    if isinstance(new, dict):
        if _tag(new):
            raise ConfigError(
                f"--{key}: HyperPyYAML would lose {_tag(new)}: write the table "
                "into a YAML of its own, and give '!include:FILE' in its place"
            )
        if not isinstance(old, dict):
            raise ConfigError(f"--{key}: is no table in the YAML")
        for name in old.keys() & new.keys():
            _check_kind(f"{key}.{name}", old[name], new[name])
        return
    if _tag(old) or _tag(new) or old is None or new is None:
        return
    if key in ONE_OR_MORE and isinstance(new, str):
        return
    kind, wanted = next(x for x in KINDS if isinstance(old, x[0]))
    flags = isinstance(old, bool) is isinstance(new, bool)
    if not (flags and isinstance(new, kind)):
        raise ConfigError(
            f"--{key}={new} must be {wanted.replace('%s', str(new))}"
        )


def _resolve(path: str, overrides: dict[str, Any]) -> str:
    """The YAML without includes and references."""
    try:
        with open(path, encoding="utf-8") as stream:
            # It would resolve the overrides in place.
            given = copy.deepcopy(overrides)
            return resolve_references(stream, given, True).getvalue()
    except (OSError, ValueError, KeyError, YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error


@contextlib.contextmanager
def _early_log() -> Iterator[logging.handlers.MemoryHandler]:
    """Show what is logged, and keep it until there is a file for it."""
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
    """Let SIGTERM, which batch systems send, end a run as Ctrl-C does."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
