"""The errors that this package raises for bad input.

Each message names the file or argument at fault and says what to do. All of
them derive from :class:`FocalCodecError`, so that a caller (the command line,
a corpus job) can tell bad input from a defect.
"""

from collections.abc import Sequence

__all__ = [
    "AudioError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FocalCodecError",
    "InstallationError",
    "PartError",
    "StreamError",
    "TokenError",
    "VoiceError",
    "abridge",
]


class FocalCodecError(Exception):
    """Base class of the errors raised for bad input."""


class ConfigError(FocalCodecError, ValueError):
    """A model configuration does not fit the closed schema."""


class CheckpointError(FocalCodecError, ValueError):
    """Weights are missing, unexpected, damaged or cannot be fetched."""


class PartError(CheckpointError, AttributeError):
    """A codec was loaded without the part that is needed."""


class AudioError(FocalCodecError, ValueError):
    """Audio cannot be read, or is empty, damaged or out of bounds."""


class TokenError(FocalCodecError, ValueError):
    """Tokens are out of range, damaged or belong to another model."""


class StreamError(FocalCodecError, ValueError):
    """A model cannot stream, or a stream or its state does not fit."""


class VoiceError(FocalCodecError, ValueError):
    """A voice reference is damaged, too short or made by another model."""


class DataError(FocalCodecError, ValueError):
    """A dataset folder or manifest is incomplete or damaged."""


class InstallationError(FocalCodecError, ImportError):
    """Two installed libraries do not fit each other."""


def abridge(items: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """The first of several things, and how many more there are.

    Arguments
    ---------
    items : sequence of str
        What to name.
    separator : str
        Put between them.
    most : int
        How many to name.

    Returns
    -------
    str
        For a message.

    Example
    -------
    >>> abridge(["a", "b", "c"], most=2)
    'a, b (and 1 more)'
    """
    more = f" (and {len(items) - most} more)" if len(items) > most else ""
    return separator.join(items[:most]) + more
