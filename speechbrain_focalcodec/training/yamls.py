"""Training YAMLs that build on one another.

HyperPyYAML includes a file as the value of a key. A training YAML can also
begin with ``!include:other.yaml``: it then is that file with the keys that
follow added or put in the place of its own, and writes only what differs.
"""

import difflib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import DuplicateKeyError
from speechbrain import RunOptions

from speechbrain_focalcodec.errors import ConfigError

__all__ = ["changed_keys", "load_yaml", "parse_overrides", "resolve_yaml"]

INCLUDE = "!include:"
# Lists that may be given as the one name that they hold.
ONE_OR_MORE = {"freeze", "loggers", "start_from"}


class _Named(io.StringIO):
    """Text that says which file it is: includes in it are relative to that."""

    def __init__(self, text: str, name: str):
        super().__init__(text)
        self.name = name


def load_yaml(path: str | Path, overrides: str | Mapping = "") -> dict:
    """Make what a training YAML says.

    It executes what the YAML names: only for YAMLs that you trust.

    Arguments
    ---------
    path : str or Path
        A training YAML.
    overrides : str or dict
        See :func:`resolve_yaml`.

    Returns
    -------
    dict
        The hyperparameters.

    Raises
    ------
    ConfigError
        See :func:`resolve_yaml`.

    Example
    -------
    >>> hparams = load_yaml(
    ...     "hparams/train/mini_decoder.yaml", "data_folder: data"
    ... )
    >>> hparams["codec"].name
    'focalcodec_mini_50hz'
    """
    return load_hyperpyyaml(resolve_yaml(path, overrides))


def resolve_yaml(path: str | Path, overrides: str | Mapping = "") -> str:
    """What a training YAML says, with nothing left to look up.

    Arguments
    ---------
    path : str or Path
        A training YAML. Executes nothing.
    overrides : str or dict
        YAML whose values take the place of the file's; includes in it are
        relative to the file.

    Returns
    -------
    str
        YAML without includes and references.

    Raises
    ------
    ConfigError
        If a file is missing, is no YAML or includes itself, a placeholder was
        not given, or an override is no key of the file or is of another kind
        than the file's value.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a.yaml").write_text("lr: 1\\ntwice: !ref <lr> * 2")
    >>> _ = (folder / "b.yaml").write_text("!include:a.yaml\\nlr: 3")
    >>> print(resolve_yaml(folder / "b.yaml").strip())
    lr: 3
    twice: 6
    """
    path = Path(path)
    tree = _read(path, ())
    if isinstance(overrides, str):
        overrides = parse_overrides(overrides)
    unknown = [key for key in overrides if key not in tree]
    if unknown:
        raise ConfigError(
            f"{path}: has no {', '.join(map(repr, unknown))} to set; "
            + _suggest(unknown[0], tree)
        )
    for key, value in overrides.items():
        _check_kind(key, tree[key], value)
    _update(tree, overrides)
    missing = [
        key for key, value in tree.items() if _tag(value) == "!PLACEHOLDER"
    ]
    if missing:
        options = " ".join(f"--{key}=..." for key in missing)
        raise ConfigError(f"{path}: add {options} to the command")
    stream = io.StringIO()
    YAML().dump(tree, stream)
    try:
        named = _Named(stream.getvalue(), os.fspath(path))
        return resolve_references(named).getvalue()
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_overrides(text: str) -> dict[str, Any]:
    """The command line's options as `sb.parse_arguments` gives them.

    Arguments
    ---------
    text : str
        YAML.

    Returns
    -------
    dict
        Values by key.

    Raises
    ------
    ConfigError
        If it is no YAML, or no table.

    Example
    -------
    >>> dict(parse_overrides("lr: 0.1"))
    {'lr': 0.1}
    """
    try:
        overrides = YAML().load(text or "{}") or {}
    except DuplicateKeyError as error:
        names = re.findall(r'duplicate key "([^"]+)"', str(error))
        raise ConfigError(
            f"the command line gives --{' '.join(names)} twice (duplicate key)"
        ) from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        lines = text.splitlines()
        line = lines[min(mark.line, len(lines) - 1)] if mark else text
        reason = getattr(error, "problem", None) or error
        option = line.replace(": ", "=", 1)
        raise ConfigError(f"--{option} is no YAML: {reason}") from error
    if not isinstance(overrides, dict):
        raise ConfigError(
            f"the command line's options: {text!r:.80} sets no key; give "
            "--KEY=VALUE"
        )
    return overrides


def changed_keys(old: str, new: str) -> dict[str, str]:
    """What differs between two resolved YAMLs.

    Arguments
    ---------
    old, new : str
        What :func:`resolve_yaml` gave.

    Returns
    -------
    dict
        By key (that of a table within a table is ``outer.inner``) what it was
        and what it is. A value that follows a changed key of the first level
        by a reference is left out.

    Raises
    ------
    ConfigError
        If one is no YAML.

    Example
    -------
    >>> changed_keys("{lr: 1, opt: {lr: 1, beta: 2}}", "{lr: 3, opt: {lr: 3}}")
    {'lr': '1 -> 3', 'opt.beta': '2 -> nothing'}
    """
    try:
        before, after = (
            dict(_leaves(YAML().load(text) or {}, "", set()))
            for text in (old, new)
        )
    except YAMLError as error:
        raise ConfigError(f"is no YAML: {error}") from error
    changed: dict[str, str] = {}
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
        for key, child in node.items():
            yield from _leaves(child, f"{name}.{key}".lstrip("."), seen)
    elif isinstance(node, list) and any(isinstance(x, dict) for x in node):
        for number, child in enumerate(node):
            yield from _leaves(child, f"{name}.{number}", seen)
    elif node is not None and not tag:
        yield name, str(list(node) if isinstance(node, list) else node)


def _suggest(key: str, tree: Mapping) -> str:
    """What a key that does not exist may have meant."""
    options = RunOptions().as_dict()
    near = difflib.get_close_matches(key, [*tree, *options], n=1)
    if near:
        return f"did you mean --{near[0]}?"
    keys = ", ".join(key for key in tree if not key.startswith("_"))
    return f"its keys are {keys}"


def _check_kind(key: str, old: Any, new: Any) -> None:
    """Raise if a value is of another kind than the one that it replaces."""
    if _tag(old) or _tag(new) or old is None or new is None:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() & new.keys():
            _check_kind(f"{key}.{name}", old[name], new[name])
        return
    for kind, fits, wanted in (
        (dict, dict, "a table, as in '{name: value}'"),
        (list, list, f"a list, as in [{new}]"),
        (bool, bool, "True or False"),
        (int | float, int | float, "a number"),
        (str, str, "text"),
    ):
        if not isinstance(old, kind):
            continue
        one = key in ONE_OR_MORE and isinstance(new, str)
        is_flag = isinstance(new, bool) and kind is not bool
        if is_flag or not (isinstance(new, fits) or one):
            raise ConfigError(f"--{key}={new} must be {wanted}")
        return


def _read(path: Path, above: tuple[Path, ...]) -> Any:
    """The tree of a file; what it begins with merged in."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: includes itself")
    try:
        tree = YAML().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        by = f", included by {above[-1]}," if above else ""
        raise ConfigError(f"{path}{by} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: is no table of keys and values")
    tag = _tag(tree)
    if not tag.startswith(INCLUDE):
        return tree
    name = tag.removeprefix(INCLUDE)
    base = _read(path.parent / name, (*above, path.resolve()))
    _move_includes(base, os.path.dirname(name))
    _update(base, tree)
    return base


def _move_includes(node: Any, folder: str) -> None:
    """Make the includes in a tree relative to a file elsewhere."""
    if not folder:
        return
    tag = _tag(node)
    if tag.startswith(INCLUDE):
        name = os.path.normpath(os.path.join(folder, tag.removeprefix(INCLUDE)))
        node.yaml_set_ctag(type(node.tag)(suffix=INCLUDE + name))
    children = node.values() if isinstance(node, dict) else node
    if isinstance(node, dict | list):
        for child in children:
            _move_includes(child, folder)


def _update(tree: Any, changes: Mapping) -> None:
    """Put values in place; tables are merged unless the new one is tagged."""
    for key, value in changes.items():
        old = tree.get(key)
        merge = isinstance(value, dict) and isinstance(old, dict)
        if merge and not _tag(value):
            _update(old, value)
        else:
            tree[key] = value


def _tag(node: Any) -> str:
    """A node's own tag, such as ``!new:module.Class``, or nothing."""
    tag = getattr(getattr(node, "tag", None), "value", None) or ""
    return "" if tag.startswith("tag:yaml.org") else tag
