"""Token files that NumPy reads: ``.npz`` archives.

Uncompressed, with a closed set of keys. They are parsed here without numpy's
reader, because a damaged or hostile file decides its memory, and without
pickle. Files of earlier releases store the length at the output's sample rate,
which has the same duration.
"""

import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechbrain_focalcodec.errors import TokenError
from speechbrain_focalcodec.tokens.content import (
    MAX_TOKENS,
    TokenFile,
    check_tokens,
)
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["read_archive", "write_archive"]

_MAX_FILE = 4 * MAX_TOKENS + 2**16  # bytes

_SCALARS = {
    "num_samples": "<i8",
    "sample_rate": "<i8",
    "codebook_size": "<i8",
    "token_rate": "<f8",
}
_STRINGS = ("model", "fingerprint")
_KEYS = {"toks", *_SCALARS, *_STRINGS}

# The header that numpy writes; no other is accepted, and nothing evaluated.
_HEADER = re.compile(
    rb"\{'descr': '(<(?:u2|u4|i8|f8|U\d{1,3}))', 'fortran_order': False, "
    rb"'shape': \((?:(\d{1,10}),)?\), \} *\n"
)


def write_archive(path: str | Path, token_file: TokenFile) -> None:
    """Write an archive, atomically; tokens are uint16 if they fit.

    Raises TokenError if a value is out of range.
    """
    path = Path(path)
    _check(path, token_file)
    toks = token_file.toks.detach().cpu().numpy()
    small = token_file.codebook_size <= 2**16
    arrays: dict[str, Any] = {"toks": toks.astype("<u2" if small else "<u4")}
    for key, kind in _SCALARS.items():
        arrays[key] = np.array(getattr(token_file, key), dtype=kind)
    for key in _STRINGS:
        arrays[key] = np.array(getattr(token_file, key))
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def read_archive(path: str | Path) -> TokenFile:
    """Read and check an archive.

    Memory is bounded by the file's size, which is bounded too: compressed
    archives are refused, and no size in the file is trusted. Raises TokenError
    if the file is missing, damaged, not a token file, or a value is out of
    range.
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
    toks = torch.from_numpy(arrays["toks"].astype(np.int64))
    token_file = TokenFile(toks=toks, **values)
    _check(path, token_file)
    return token_file


def _read_entries(path: Path) -> dict[str, bytes]:
    """Read the archive's entries, together no larger than the file."""
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
    """Parse a version 1.0 ``.npy`` entry of rank 0 or 1, without copying."""
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
    """Check types and ranks; return the fields other than the tokens."""
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


def _check(path: Path, file: TokenFile) -> None:
    """Check values; an archive needs its model's name and fingerprint."""
    check_tokens(path, file)
    if not file.model or len(file.fingerprint) != 64:
        raise TokenError(
            f"{path}: model and fingerprint must be whole in an archive, which "
            "tokens from a .focal file do not have; encode the audio again"
        )
