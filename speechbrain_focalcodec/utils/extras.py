"""Importing libraries that may be missing, or not fit each other."""

import importlib
from importlib.metadata import version
from types import ModuleType

from speechbrain_focalcodec.errors import InstallationError

__all__ = ["import_extra", "import_torchaudio"]


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a library that belongs to an extra of this package.

    Arguments
    ---------
    module : str
        Name of the module to import.
    extra : str
        The extra of this package that installs it.

    Returns
    -------
    ModuleType
        The module.

    Raises
    ------
    ImportError
        When the library is not installed; the message says how to get it.

    Example
    -------
    >>> import_extra("json", "metrics").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Something that the library itself misses is another fault.
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f"This needs {error.name}, which is not installed. Install it "
            f"with: pip install 'speechbrain_focalcodec[{extra}]'"
        ) from error


def import_torchaudio() -> ModuleType:
    """Import torchaudio, whose library fits some releases of torch only.

    Returns
    -------
    ModuleType
        torchaudio.

    Raises
    ------
    InstallationError
        When torchaudio is installed and does not load; the message names both
        versions and the command that installs a pair that does.

    Example
    -------
    >>> import_torchaudio().__name__
    'torchaudio'
    """
    try:
        return importlib.import_module("torchaudio")
    # A symbol that is missing is an OSError, another CUDA a RuntimeError.
    except (OSError, RuntimeError) as error:
        import torch

        release = torch.__version__.partition("+")[0]
        # torchaudio 2.11.1 is built for every torch from 2.12 on.
        fitting = ">=2.11.1" if torch.__version__ >= "2.12" else f"=={release}"
        raise InstallationError(
            f"torchaudio {version('torchaudio')} does not load with torch "
            f"{torch.__version__}; install one that does: "
            f"pip install 'torchaudio{fitting}'"
        ) from error
