"""Token files: the tokens of one recording and the model they belong to.

A token file is an uncompressed ``.npz`` archive with a closed set of keys,
which ``numpy.load`` reads too. It is parsed here without numpy's reader, whose
memory a damaged or hostile file decides, and without pickle.
"""

import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechbrain_focalcodec.atomic import atomic_path
from speechbrain_focalcodec.audio import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from speechbrain_focalcodec.errors import TokenError

__all__ = ["MAX_TOKENS", "TokenFile", "load_tokens", "save_tokens"]

MAX_TOKENS = 2**24  # more than 90 hours at 50 Hz
_MAX_FILE = 4 * MAX_TOKENS + 2**16  # bytes
# Encoders round the token count up or down by a few tokens, no more.
_MAX_SLACK = 16

_SCALARS = {
    "num_samples": "<i8",
    "sample_rate": "<i8",
    "codebook_size": "<i8",
    "token_rate": "<f8",
}
_STRINGS = ("model", "fingerprint")
_KEYS = {"toks", *_SCALARS, *_STRINGS}

# The header that numpy writes: nothing else is accepted, nothing evaluated.
_HEADER = re.compile(
    rb"\{'descr': '(<(?:u2|u4|i8|f8|U\d{1,3}))', 'fortran_order': False, "
    rb"'shape': \((?:(\d{1,10}),)?\), \} *\n"
)


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The content of a token file.

    Arguments
    ---------
    toks : torch.Tensor
        The tokens, int64 [N].
    model : str
        Name of the model that made them.
    fingerprint : str
        SHA-256 of that model's configuration and weights, in hexadecimal.
    num_samples : int
        Length of the waveform to restore, in samples at `sample_rate`.
    sample_rate : int
        Output sample rate of the model, in Hz.
    codebook_size : int
        Number of different tokens.
    token_rate : float
        Tokens a second, in Hz.

    Example
    -------
    >>> file = TokenFile(
    ...     torch.arange(50), "mini", "0" * 64, 16000, 16000, 8192, 50.0
    ... )
    >>> file.num_samples / file.sample_rate
    1.0
    """

    toks: torch.Tensor
    model: str
    fingerprint: str
    num_samples: int
    sample_rate: int
    codebook_size: int
    token_rate: float


def save_tokens(path: str | Path, token_file: TokenFile) -> None:
    """Write a token file, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file to write, with suffix ``.npz``.
    token_file : TokenFile
        What to write; tokens are stored as uint16 when they fit.

    Raises
    ------
    TokenError
        If a value is out of range or the suffix is another.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.npz"
    >>> file = TokenFile(
    ...     torch.arange(50), "mini", "0" * 64, 16000, 16000, 8192, 50.0
    ... )
    >>> save_tokens(path, file)
    >>> load_tokens(path).toks.shape
    torch.Size([50])
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise TokenError(f"{path}: a token file's name must end in .npz")
    toks = token_file.toks.detach().cpu().numpy()
    _check(path, toks, token_file)
    small = token_file.codebook_size <= 2**16
    arrays: dict[str, Any] = {"toks": toks.astype("<u2" if small else "<u4")}
    for key, kind in _SCALARS.items():
        arrays[key] = np.array(getattr(token_file, key), dtype=kind)
    for key in _STRINGS:
        arrays[key] = np.array(getattr(token_file, key))
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def load_tokens(path: str | Path) -> TokenFile:
    """Read a token file, checking all of it.

    Memory is bounded by the file's size, which is bounded too: compressed
    archives are refused, and no size in the file is trusted.

    Arguments
    ---------
    path : str or Path
        The file to read.

    Returns
    -------
    TokenFile
        Its content, with tokens as int64 [N].

    Raises
    ------
    TokenError
        If the file is missing, damaged, not a token file, or a value is out
        of range.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.npz"
    >>> _ = path.write_bytes(b"not a token file")
    >>> load_tokens(path)
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.TokenError: ...a.npz: not a token file ...
    """
    path = Path(path)
    if not path.is_file():
        raise TokenError(f"{path}: no such file; check the path")
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ValueError(f"more than {_MAX_FILE} bytes")
        arrays = {
            key: _parse_array(data) for key, data in _read_entries(path).items()
        }
        values = _to_values(arrays)
    except (
        *(OSError, EOFError, LookupError, RuntimeError, ValueError),
        *(OverflowError, NotImplementedError, struct.error),
        zipfile.BadZipFile,
    ) as error:
        raise TokenError(
            f"{path}: not a token file or damaged ({error}); encode the audio "
            "again"
        ) from error
    toks = arrays["toks"].astype(np.int64)
    token_file = TokenFile(toks=torch.from_numpy(toks), **values)
    _check(path, toks, token_file)
    return token_file


def _read_entries(path: Path) -> dict[str, bytes]:
    """Read the archive's entries; their sum is bounded by the file's size."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sorted(entry.filename for entry in entries) != sorted(
            f"{key}.npy" for key in _KEYS
        ):
            raise ValueError("other entries than expected")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed entries are not accepted")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("entries larger than the file")
        return {
            entry.filename.removesuffix(".npy"): archive.read(entry)
            for entry in entries
        }


def _parse_array(data: bytes) -> np.ndarray:
    """Parse a version 1.0 ``.npy`` entry of rank 0 or 1, copying nothing."""
    end = 10 + int.from_bytes(data[8:10], "little")
    match = _HEADER.fullmatch(data[10:end]) if end <= 4096 else None
    if data[:8] != b"\x93NUMPY\x01\x00" or match is None:
        raise ValueError("an entry has an unknown header")
    dtype = np.dtype(match[1].decode("ascii"))
    length = 1 if match[2] is None else int(match[2])
    if dtype.itemsize == 0 or len(data) - end != length * dtype.itemsize:
        raise ValueError("an entry is not as long as its header says")
    array = np.frombuffer(data, dtype=dtype, offset=end)
    return array if match[2] is not None else array.reshape(())


def _to_values(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Check types and ranks, and give the fields other than the tokens."""
    toks = arrays["toks"]
    if toks.ndim != 1 or toks.dtype.str not in ("<u2", "<u4"):
        raise ValueError("toks is not a vector of uint16 or uint32")
    for key, kind in _SCALARS.items():
        if arrays[key].ndim or arrays[key].dtype.str != kind:
            raise ValueError(f"{key} is not a scalar of type {kind}")
    for key in _STRINGS:
        if arrays[key].ndim or arrays[key].dtype.kind != "U":
            raise ValueError(f"{key} is not a string")
    return {key: arrays[key].item() for key in (*_SCALARS, *_STRINGS)}


def _check(path: Path, toks: np.ndarray, file: TokenFile) -> None:
    """Refuse values out of range."""
    if toks.ndim != 1 or toks.dtype != np.int64:
        raise TokenError(
            f"{path}: toks must be int64 [N], not {toks.dtype} "
            f"{list(toks.shape)}"
        )
    in_range = {
        "model": 0 < len(file.model) <= 200 and file.model.isprintable(),
        "fingerprint": re.fullmatch("[0-9a-f]{64}", file.fingerprint),
        "sample_rate": MIN_SAMPLE_RATE <= file.sample_rate <= MAX_SAMPLE_RATE,
        "codebook_size": 2 <= file.codebook_size <= 2**32,
        "token_rate": 0.1 <= file.token_rate <= 10000,
        "number of tokens": 1 <= len(toks) <= MAX_TOKENS,
        "num_samples": file.num_samples >= 1,
    }
    for name, fine in in_range.items():
        if not fine:
            raise TokenError(
                f"{path}: {name} is out of range; encode the audio again"
            )
    if toks.min() < 0 or toks.max() >= file.codebook_size:
        raise TokenError(
            f"{path}: a token is not within 0..{file.codebook_size - 1}; "
            "encode the audio again"
        )
    # A false num_samples would have decode make an endless file.
    expected = file.num_samples / file.sample_rate * file.token_rate
    if abs(expected - len(toks)) > _MAX_SLACK:
        raise TokenError(
            f"{path}: {len(toks)} tokens cannot stand for "
            f"{file.num_samples} samples; encode the audio again"
        )
