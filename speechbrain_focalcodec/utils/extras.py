"""Imports optional libraries, with advice if they are missing."""

import importlib
from importlib.metadata import version
from types import ModuleType

from speechbrain_focalcodec.errors import InstallationError

__all__ = ["import_extra", "import_torchaudio"]


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a module that an extra of this package installs.

    Raises ImportError with the pip command if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The library may lack one of its own dependencies.
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f"This needs {error.name}, which is not installed. Install it "
            f"with: pip install 'speechbrain_focalcodec[{extra}]'"
        ) from error


def import_torchaudio() -> ModuleType:
    """Import torchaudio, which works only with some releases of torch.

    Raises InstallationError if it does not load; the message names both
    versions and the command that installs a working pair.
    """
    try:
        return importlib.import_module("torchaudio")
    # OSError: a missing symbol; RuntimeError: another CUDA version.
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
