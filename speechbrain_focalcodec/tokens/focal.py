"""Compact token files, ``.focal``.

A fixed header, the tokens, and a checksum over both; docs/bitstream.md has the
layout. Checksum and file size are compared with the header before anything else
is trusted.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speechbrain_focalcodec.errors import TokenError
from speechbrain_focalcodec.tokens.content import (
    MAX_TOKENS,
    PREFIX_DIGITS,
    TokenFile,
    check_span,
    check_tokens,
)
from speechbrain_focalcodec.tokens.entropy import (
    code_tokens,
    least_code_bits,
    restore_tokens,
)
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "VERSION",
    "FocalHeader",
    "is_focal",
    "pack_tokens",
    "read_focal",
    "read_header",
    "unpack_tokens",
    "write_focal",
]

MAGIC = b"FOCL"
VERSION = 1
HEADER_BYTES = 40  # with the checksum, which comes last

# magic, version, flags, bits per token, zero, fingerprint, num_samples,
# sample_rate, token_rate, num_tokens
_HEADER = struct.Struct("<4sBBBB8sQIfI")
_CRC = struct.Struct("<I")
_ENTROPY = 1  # the only flag
_MAX_BITS = 32
_MAX_FILE = HEADER_BYTES + MAX_TOKENS * _MAX_BITS // 8  # bytes
# Per byte of code: otherwise few bytes of a codebook of one or two bits would
# take minutes to decode.
_MOST_TOKENS = 256
_BLOCK = 2**16  # tokens per call; blocks end at a byte


@dataclass(frozen=True)
class FocalHeader:
    """The header of a ``.focal`` file.

    Arguments
    ---------
    entropy_coded : bool
        Whether the tokens are entropy-coded.
    bits : int
        Bits per token; the codebook has ``2**bits`` tokens.
    fingerprint : str
        The first 16 hexadecimal digits of the model's fingerprint.
    num_samples : int
        Length of the encoded audio.
    sample_rate : int
        Sample rate of the audio (Hz).
    token_rate : float
        Tokens per second (Hz).
    num_tokens : int
        Number of tokens.
    payload_bytes : int
        Size of the coded tokens.
    """

    entropy_coded: bool
    bits: int
    fingerprint: str
    num_samples: int
    sample_rate: int
    token_rate: float
    num_tokens: int
    payload_bytes: int

    @property
    def plain_bytes(self) -> int:
        """Size of the tokens without entropy coding."""
        return -(-self.num_tokens * self.bits // 8)


def write_focal(
    path: str | Path, token_file: TokenFile, *, entropy: bool = False
) -> None:
    """Write a ``.focal`` file, atomically.

    The model's name and all but the beginning of its fingerprint are left out.
    Entropy coding is not used if the file would not be smaller, or have less
    than a byte per 256 tokens. Raises TokenError if a value is out of range or
    the codebook size is no power of two; ImportError if the library for entropy
    coding is not installed.
    """
    path = Path(path)
    check_tokens(path, token_file)
    bits = token_file.codebook_size.bit_length() - 1
    if token_file.codebook_size != 2**bits:
        raise TokenError(
            f"{path}: a .focal file needs a codebook size that is a power of "
            f"two, not {token_file.codebook_size}; write a .npz file"
        )
    toks = token_file.toks.detach().cpu().numpy()
    payload, flags = pack_tokens(toks, bits), 0
    if entropy:
        coded = code_tokens(toks, bits)
        pays = len(coded) < len(payload)
        if pays and len(toks) <= _MOST_TOKENS * len(coded):
            payload, flags = coded, _ENTROPY
    data = (
        _HEADER.pack(
            *(MAGIC, VERSION, flags, bits, 0),
            bytes.fromhex(token_file.fingerprint[:PREFIX_DIGITS]),
            token_file.num_samples,
            token_file.sample_rate,
            token_file.token_rate,
            len(toks),
        )
        + payload
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(data + _CRC.pack(zlib.crc32(data)))


def read_focal(path: str | Path) -> TokenFile:
    """Read and check a ``.focal`` file.

    Memory and time are bounded by the file's size, which is bounded too. The
    model's name is empty. Raises TokenError if the file is missing, damaged, of
    a newer format or not a ``.focal`` file, if a value is out of range, or if
    it is entropy-coded and the library for that is not installed.
    """
    path = Path(path)
    data = _read_bytes(path)
    header = _parse(path, data)
    payload = data[_HEADER.size : -_CRC.size]
    try:
        restore = restore_tokens if header.entropy_coded else unpack_tokens
        toks = restore(payload, header.num_tokens, header.bits)
    except ImportError as error:
        raise TokenError(f"{path}: is entropy-coded. {error}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    token_file = TokenFile(
        toks=torch.from_numpy(toks),
        model="",
        fingerprint=header.fingerprint,
        num_samples=header.num_samples,
        sample_rate=header.sample_rate,
        codebook_size=2**header.bits,
        token_rate=header.token_rate,
    )
    check_tokens(path, token_file)
    return token_file


def read_header(path: str | Path) -> FocalHeader:
    """Read the header of a ``.focal`` file.

    The whole file's checksum is compared, but no token is decoded. Raises
    TokenError as :func:`read_focal` does.
    """
    path = Path(path)
    return _parse(path, _read_bytes(path))


def is_focal(path: str | Path) -> bool:
    """Whether an existing file begins like a ``.focal`` file."""
    with open(path, "rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _read_bytes(path: Path) -> bytes:
    """Read a file, unless it is too large for a ``.focal`` file."""
    if not path.is_file():
        raise TokenError(f"{path}: no such file; check the path")
    if path.stat().st_size > _MAX_FILE:
        raise TokenError(
            f"{path}: not a .focal file: more than {_MAX_FILE} bytes; check "
            "the path"
        )
    return path.read_bytes()


def _parse(path: Path, data: bytes) -> FocalHeader:
    """Check everything except the tokens."""
    if data[: len(MAGIC)] != MAGIC:
        raise TokenError(
            f"{path}: not a .focal file or damaged; check the path, or encode "
            "the audio again"
        )
    if len(data) < HEADER_BYTES:
        raise _damaged(path, f"cut off within its header, {len(data)} bytes")
    fields = _HEADER.unpack_from(data)
    version, flags, bits, zero, prefix = fields[1:6]
    num_samples, sample_rate, token_rate, num_tokens = fields[6:]
    if version > VERSION:
        raise TokenError(
            f"{path}: has version {version} of the .focal format, this "
            f"release reads {VERSION}: update speechbrain_focalcodec, or "
            "encode the audio again if the file is damaged"
        )
    header = FocalHeader(
        entropy_coded=bool(flags & _ENTROPY),
        bits=bits,
        fingerprint=prefix.hex(),
        num_samples=num_samples,
        sample_rate=sample_rate,
        token_rate=token_rate,
        num_tokens=num_tokens,
        payload_bytes=len(data) - HEADER_BYTES,
    )
    surplus = header.payload_bytes - header.plain_bytes
    if zlib.crc32(data[: -_CRC.size]) != _CRC.unpack(data[-_CRC.size :])[0]:
        reason = "its checksum is wrong"
        if surplus < 0 and not header.entropy_coded:
            reason += f", {-surplus} bytes are missing"
        elif surplus > 0:
            reason += f", there are {surplus} bytes too many"
        raise _damaged(path, reason)
    if flags & ~_ENTROPY:
        raise TokenError(
            f"{path}: has flags {flags:#04x} that this release does not know: "
            "update speechbrain_focalcodec, or encode the audio again"
        )
    if version != VERSION or zero:
        raise _damaged(path, "its header is not one of this format")
    if not 1 <= bits <= _MAX_BITS:
        raise _damaged(path, f"{bits} bits per token")
    # Before decoding, which takes time.
    check_span(path, num_samples, sample_rate, token_rate, num_tokens)
    if not header.entropy_coded:
        fits = surplus == 0
    else:
        # A coded file is smaller than a plain one, and has a minimum size:
        # otherwise a few bytes could cause hours of decoding.
        least = least_code_bits(num_tokens, bits)
        fits = (
            surplus < 0
            and least <= 8 * header.payload_bytes
            and num_tokens <= _MOST_TOKENS * header.payload_bytes
        )
    if not fits:
        raise _damaged(
            path,
            f"{num_tokens} tokens cannot be in {header.payload_bytes} bytes",
        )
    return header


def _damaged(path: Path, reason: str) -> TokenError:
    return TokenError(f"{path}: damaged ({reason}); encode the audio again")


def pack_tokens(toks: np.ndarray, bits: int) -> bytes:
    """Pack tokens, int64 [N], each below ``2**bits``, highest bit first.

    The result has ``ceil(N * bits / 8)`` bytes; the rest of the last one is
    zero.
    """
    blocks = []
    for start in range(0, len(toks), _BLOCK):
        words = toks[start : start + _BLOCK].astype(">u4")
        planes = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1)
        blocks.append(np.packbits(planes[:, 32 - bits :]).tobytes())
    return b"".join(blocks)


def unpack_tokens(data: bytes, num_tokens: int, bits: int) -> np.ndarray:
    """Unpack tokens of :func:`pack_tokens`, int64 [N].

    Raises ValueError for another number of bytes, or if the rest of the last
    one is not zero.
    """
    padding = 8 * len(data) - num_tokens * bits
    if not 0 <= padding < 8:
        raise ValueError(f"{num_tokens} tokens are not in {len(data)} bytes")
    if data and data[-1] & ((1 << padding) - 1):
        raise ValueError("the bits after the last token are not zero")
    packed = np.frombuffer(data, np.uint8)
    toks = np.empty(num_tokens, np.int64)
    for start in range(0, num_tokens, _BLOCK):
        number = min(_BLOCK, num_tokens - start)
        block = packed[start * bits // 8 :]
        planes = np.zeros((number, 32), np.uint8)
        planes[:, 32 - bits :] = np.unpackbits(
            block[: -(-number * bits // 8)], count=number * bits
        ).reshape(number, bits)
        words = np.packbits(planes, axis=1).view(">u4")
        toks[start : start + number] = words[:, 0]
    return toks
