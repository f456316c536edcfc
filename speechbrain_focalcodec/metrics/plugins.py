"""Codecs and metrics of the user's own, named as ``package.module:Name``."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["is_plugin", "make_plugin"]

Kind = TypeVar("Kind")


def is_plugin(spec: str) -> bool:
    """Whether a name says where something of the user's is.

    Arguments
    ---------
    spec : str
        The name.

    Returns
    -------
    bool
        Whether it is a module's path, a colon and a name in it.

    Example
    -------
    >>> is_plugin("my.codecs:Mine"), is_plugin("codec2:1300")
    (True, False)
    """
    module, colon, name = spec.partition(":")
    parts = module.split(".")
    return (
        bool(colon)
        and name.isidentifier()
        and all(map(str.isidentifier, parts))
    )


def make_plugin(
    spec: str, kind: type[Kind], device: str | torch.device | None = None
) -> Kind:
    """Import something of the user's and make one; this runs their code.

    Arguments
    ---------
    spec : str
        ``package.module:Name``, on the Python path; the name of a class or of
        a function that makes one.
    kind : type
        What it must be.
    device : str or torch.device, optional
        Handed over where it takes a ``device``.

    Returns
    -------
    object
        A `kind`.

    Raises
    ------
    ImportError
        If there is no such module.
    ValueError
        If the module has no such name, or it makes something else.

    Example
    -------
    >>> make_plugin("collections:Counter", dict)
    Counter()
    """
    module, _, name = spec.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # What a module of the user's misses is another fault.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ImportError(
            f"{spec}: there is no module {module} on the Python path; set "
            "PYTHONPATH to its folder"
        ) from error
    make = getattr(found, name, None)
    if not callable(make):
        raise ValueError(f"{spec}: {module} has no class or function {name}")
    made = make(device=device) if _takes_device(make) else make()
    if not isinstance(made, kind):
        raise ValueError(
            f"{spec}: must make a {kind.__module__}.{kind.__name__}, not "
            f"{type(made).__name__}"
        )
    return made


def _takes_device(make: Callable[..., Any]) -> bool:
    try:
        return "device" in inspect.signature(make).parameters
    except ValueError:  # some that are written in C have no signature
        return False
