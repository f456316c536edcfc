"""The tokens of one recording and their metadata, in any file format."""

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
PREFIX_DIGITS = 16  # of a fingerprint, in files that store only its beginning
# Encoders round the number of tokens up or down by a few.
_MAX_SLACK = 16


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The content of a token file.

    Arguments
    ---------
    toks : torch.Tensor
        The tokens, int64 [N].
    model : str
        Name of the model that made them; empty if the file has no name.
    fingerprint : str
        SHA-256 (hex) of that model's configuration and weights: 64 digits, or
        the first 16 if the file stores no more.
    num_samples : int
        Length of the encoded audio, in samples at `sample_rate`.
    sample_rate : int
        Sample rate of the audio (Hz).
    codebook_size : int
        Size of the codebook.
    token_rate : float
        Tokens per second (Hz).

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
        """Duration of the encoded audio (s)."""
        return self.num_samples / self.sample_rate

    def num_samples_at(self, sample_rate: int) -> int:
        """Exact length of the decoded audio, in samples at `sample_rate`."""
        return resampled_length(self.num_samples, self.sample_rate, sample_rate)

    def belongs_to(self, fingerprint: str) -> bool:
        """Whether the model with this whole fingerprint made the tokens."""
        return fingerprint.startswith(self.fingerprint)


def check_tokens(path: Path, file: TokenFile) -> None:
    """Raise TokenError if a value is out of range.

    `path` is named in messages. The number of tokens must match the number of
    samples.
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
    """Raise TokenError if the tokens cannot belong to audio of this length."""
    in_range = {
        "sample_rate": MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE,
        "token_rate": 0.1 <= token_rate <= 10000,
        "number of tokens": 1 <= num_tokens <= MAX_TOKENS,
        "num_samples": num_samples >= 1,
    }
    _check_range(path, in_range)
    # A wrong num_samples could make a decoded file endless.
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
