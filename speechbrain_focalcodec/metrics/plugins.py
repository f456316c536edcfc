"""Imports the user's codecs and metrics, named ``package.module:Name``."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["is_plugin", "make_plugin"]

Kind = TypeVar("Kind")


def is_plugin(spec: str) -> bool:
    """True for a module's path, a colon and a name."""
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
    """Import and make a user's codec or metric; this executes their code.

    `spec` names a class of `kind`, or a function that makes one. `device` is
    passed on if there is such an argument. Raises an ImportError if the module
    is not found, and a ValueError if the name is missing or makes another
    object.
    """
    module, _, name = spec.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The user's module itself may miss another module.
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
    except ValueError:  # some C functions have no signature
        return False
