"""The errors that this package raises for bad input.

Each message names the file or argument at fault and says what to do. All of
them derive from :class:`FocalCodecError`, so that a caller (the command line,
a corpus job) can tell bad input from a defect.
"""

__all__ = [
    "AudioError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FocalCodecError",
    "TokenError",
]


class FocalCodecError(Exception):
    """Base class of the errors raised for bad input."""


class ConfigError(FocalCodecError, ValueError):
    """A model configuration does not fit the closed schema."""


class CheckpointError(FocalCodecError, ValueError):
    """Weights are missing, unexpected, damaged or cannot be fetched."""


class AudioError(FocalCodecError, ValueError):
    """Audio cannot be read, or is empty, damaged or out of bounds."""


class TokenError(FocalCodecError, ValueError):
    """Tokens are out of range, damaged or belong to another model."""


class DataError(FocalCodecError, ValueError):
    """A dataset folder or manifest is incomplete or damaged."""
