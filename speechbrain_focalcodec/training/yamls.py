"""Training YAMLs that build on one another.

HyperPyYAML includes a file as the value of a key. A training YAML can also
begin with ``!include:other.yaml``: it then is that file with the keys that
follow added or put in the place of its own, and writes only what differs.
"""

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML, YAMLError

from speechbrain_focalcodec.errors import ConfigError

__all__ = ["load_yaml", "resolve_yaml", "resolved_file"]

INCLUDE = "!include:"


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


@contextmanager
def resolved_file(path: str | Path, overrides: str = "") -> Iterator[str]:
    """A file with what a YAML says after includes, references and overrides.

    Arguments
    ---------
    path : str or Path
        A training YAML.
    overrides : str
        The command line's, as `sb.parse_arguments` gives them.

    Yields
    ------
    str
        Path of a temporary file, for `load_hyperpyyaml` and
        `sb.create_experiment_directory`.

    Raises
    ------
    ConfigError
        See :func:`resolve_yaml`.
    """
    text = resolve_yaml(path, overrides)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(path).name
        file.write_text(text, encoding="utf-8")
        yield str(file)


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
        not given, or an override is no key of the file.

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
        try:
            overrides = YAML().load(overrides or "{}") or {}
        except YAMLError as error:
            raise ConfigError(f"the command line's options: {error}") from error
    unknown = [key for key in overrides if key not in tree]
    if unknown:
        raise ConfigError(
            f"{path}: has no {', '.join(map(repr, unknown))} to set; its keys "
            f"are {', '.join(key for key in tree if not key.startswith('_'))}"
        )
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
