"""The tokens of one recording, whatever file holds them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speechbrain_focalcodec.audio.resampling import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    resampled_length,
)
from speechbrain_focalcodec.errors import TokenError

__all__ = [
    "MAX_TOKENS",
    "PREFIX_DIGITS",
    "TokenFile",
    "check_span",
    "check_tokens",
]

MAX_TOKENS = 2**24  # more than 90 hours at 50 Hz
PREFIX_DIGITS = 16  # of a fingerprint, where a file holds its beginning only
# Encoders round the token count up or down by a few tokens, no more.
_MAX_SLACK = 16


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The content of a token file.

    Arguments
    ---------
    toks : torch.Tensor
        The tokens, int64 [N].
    model : str
        Name of the model that made them; empty where the file has no name.
    fingerprint : str
        SHA-256 of that model's configuration and weights, in hexadecimal: 64
        digits, or the first 16 where the file holds no more.
    num_samples : int
        Length of the audio that was encoded, in samples at `sample_rate`.
    sample_rate : int
        Its own sample rate, in Hz.
    codebook_size : int
        Number of different tokens.
    token_rate : float
        Tokens a second, in Hz.

    Example
    -------
    >>> file = TokenFile(
    ...     torch.arange(50), "mini", "0" * 64, 44100, 44100, 8192, 50.0
    ... )
    >>> file.duration
    1.0
    >>> file.num_samples_at(16000)
    16000
    """

    toks: torch.Tensor
    model: str
    fingerprint: str
    num_samples: int
    sample_rate: int
    codebook_size: int
    token_rate: float

    @property
    def duration(self) -> float:
        """Of the audio that was encoded, in seconds."""
        return self.num_samples / self.sample_rate

    def num_samples_at(self, sample_rate: int) -> int:
        """Give the exact length to restore.

        Arguments
        ---------
        sample_rate : int
            The output's sample rate, in Hz.

        Returns
        -------
        int
            Samples at that rate.
        """
        return resampled_length(self.num_samples, self.sample_rate, sample_rate)

    def belongs_to(self, fingerprint: str) -> bool:
        """Tell whether a model made these tokens.

        Arguments
        ---------
        fingerprint : str
            The model's, whole.

        Returns
        -------
        bool
            Whether it agrees with all digits that are known here.
        """
        return fingerprint.startswith(self.fingerprint)


def check_tokens(path: Path, file: TokenFile) -> None:
    """Refuse values out of range.

    Arguments
    ---------
    path : Path
        The file to name in messages.
    file : TokenFile
        Its content.

    Raises
    ------
    TokenError
        If a value is out of range, or the number of tokens cannot stand for
        the number of samples.

    Example
    -------
    >>> file = TokenFile(
    ...     torch.arange(50), "mini", "0" * 64, 44100, 44100, 8192, 50.0
    ... )
    >>> check_tokens(Path("a.focal"), file)
    """
    toks = file.toks
    if toks.ndim != 1 or toks.dtype != torch.int64:
        raise TokenError(
            f"{path}: toks must be int64 [N], not "
            f"{str(toks.dtype).removeprefix('torch.')} {list(toks.shape)}"
        )
    whole = re.fullmatch("[0-9a-f]{64}", file.fingerprint)
    prefix = re.fullmatch(f"[0-9a-f]{{{PREFIX_DIGITS}}}", file.fingerprint)
    in_range = {
        "model": len(file.model) <= 200 and file.model.isprintable(),
        "fingerprint": whole or prefix,
        "codebook_size": 2 <= file.codebook_size <= 2**32,
    }
    _check_range(path, in_range)
    check_span(
        path, file.num_samples, file.sample_rate, file.token_rate, len(toks)
    )
    values = toks.detach().cpu().numpy()
    if np.min(values) < 0 or np.max(values) >= file.codebook_size:
        raise TokenError(
            f"{path}: a token is not within 0..{file.codebook_size - 1}; "
            "encode the audio again"
        )


def check_span(
    path: str | Path,
    num_samples: int,
    sample_rate: int,
    token_rate: float,
    num_tokens: int,
) -> None:
    """Refuse a number of tokens that cannot stand for the audio.

    Arguments
    ---------
    path : str or Path
        The file, for the message.
    num_samples, sample_rate : int
        Of the audio.
    token_rate : float
        Tokens a second.
    num_tokens : int
        How many there are.

    Raises
    ------
    TokenError
        If one of them is out of range, or they do not fit together.

    Example
    -------
    >>> check_span("a.focal", 16000, 16000, 50.0, 50)
    """
    in_range = {
        "sample_rate": MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE,
        "token_rate": 0.1 <= token_rate <= 10000,
        "number of tokens": 1 <= num_tokens <= MAX_TOKENS,
        "num_samples": num_samples >= 1,
    }
    _check_range(path, in_range)
    # A false num_samples would have decode make an endless file.
    if abs(num_samples / sample_rate * token_rate - num_tokens) > _MAX_SLACK:
        raise TokenError(
            f"{path}: {num_tokens} tokens cannot stand for {num_samples} "
            "samples; encode the audio again"
        )


def _check_range(path: str | Path, in_range: Mapping[str, object]) -> None:
    for name, fine in in_range.items():
        if not fine:
            raise TokenError(
                f"{path}: {name} is out of range; encode the audio again"
            )
