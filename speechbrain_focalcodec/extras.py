"""Importing libraries that only some installations have."""

import importlib
from types import ModuleType

__all__ = ["import_extra"]


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
