"""Command line of a recipe: SpeechBrain's options and keys of the YAML."""

import contextlib
import copy
import difflib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError

from speechbrain_focalcodec.errors import ConfigError

__all__ = [
    "check_overrides",
    "parse_options",
    "parse_overrides",
    "resolve",
    "tag_of",
]

# Lists that may be given as one name.
ONE_OR_MORE = {"freeze", "loggers", "start_from"}
# A value on the command line must have the kind of the YAML's value.
KINDS = (
    (dict, "a table, as in '{name: value}'"),
    (list, "a list, as in [%s]"),
    (bool, "True or False"),
    ((int, float), "a number"),
    (str, "text"),
)


def parse_options(arguments: Sequence[str]) -> tuple[str, Any, str]:
    """Path of the YAML, SpeechBrain's options, and overrides as YAML text."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            path, run_opts, overrides = sb.parse_arguments(list(arguments))
    except SystemExit as error:
        if not error.code:
            raise  # --help
        reason = stderr.getvalue().strip().splitlines()[-1]
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


def parse_overrides(text: str) -> dict[str, Any]:
    """Overrides by key."""
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


def check_overrides(path: str, overrides: dict[str, Any]) -> None:
    """Raise if a key is unknown, has another kind, or is missing."""
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
        if tag_of(value) == "!PLACEHOLDER" and key not in overrides
    ]
    if missing:
        raise ConfigError(f"{path}: add {' '.join(missing)} to the command")


def _check_kind(key: str, old: Any, new: Any) -> None:
    """Raise if HyperPyYAML cannot replace a value by another."""
    if isinstance(new, dict):
        if tag_of(new):
            raise ConfigError(
                f"--{key}: HyperPyYAML would lose {tag_of(new)}: write the "
                "table into a YAML of its own, and give '!include:FILE' in "
                "its place"
            )
        if not isinstance(old, dict):
            raise ConfigError(f"--{key}: is no table in the YAML")
        for name in old.keys() & new.keys():
            _check_kind(f"{key}.{name}", old[name], new[name])
        return
    if tag_of(old) or tag_of(new) or old is None or new is None:
        return
    if key in ONE_OR_MORE and isinstance(new, str):
        return
    kind, wanted = next(x for x in KINDS if isinstance(old, x[0]))
    flags = isinstance(old, bool) is isinstance(new, bool)
    if not (flags and isinstance(new, kind)):
        raise ConfigError(
            f"--{key}={new} must be {wanted.replace('%s', str(new))}"
        )


def resolve(path: str, overrides: dict[str, Any]) -> str:
    """The YAML without includes and references."""
    try:
        with open(path, encoding="utf-8") as stream:
            # resolve_references changes the overrides.
            overrides = copy.deepcopy(overrides)
            return resolve_references(stream, overrides, True).getvalue()
    except (OSError, ValueError, KeyError, YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error


def tag_of(node: Any) -> str:
    """Custom tag of a node, such as ``!new:module.Class``, or ""."""
    tag = getattr(getattr(node, "tag", None), "value", None) or ""
    return "" if tag.startswith("tag:yaml.org") else tag
