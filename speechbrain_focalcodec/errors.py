"""The errors for bad input.

Each message names the file or argument and the remedy. All derive from
:class:`FocalCodecError`, so that a caller can tell bad input from a defect.
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
    """The first `most` items joined, and how many more there are."""
    more = f" (and {len(items) - most} more)" if len(items) > most else ""
    return separator.join(items[:most]) + more
