"""Token files of few bytes: ``.focal``, each token in exactly its bits.

A fixed header, the tokens, and a checksum over both; docs/bitstream.md tells
it byte by byte. Nothing in a file is trusted before the checksum and the
file's size have been compared with what the header claims.
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

# magic, version, flags, bits a token, zero, fingerprint, num_samples,
# sample_rate, token_rate, num_tokens
_HEADER = struct.Struct("<4sBBBB8sQIfI")
_CRC = struct.Struct("<I")
_ENTROPY = 1  # the only flag
_MAX_BITS = 32
_MAX_FILE = HEADER_BYTES + MAX_TOKENS * _MAX_BITS // 8  # bytes
# A byte of code stands for no more: else few bytes of a codebook of one or
# two bits would take minutes to decode.
_MOST_TOKENS = 256
_BLOCK = 2**16  # tokens to pack at once; blocks end at a byte


@dataclass(frozen=True)
class FocalHeader:
    """What a ``.focal`` file tells before its tokens.

    Arguments
    ---------
    entropy_coded : bool
        Whether the tokens are entropy-coded.
    bits : int
        Bits of a token; there are ``2**bits`` different ones.
    fingerprint : str
        The first 16 hexadecimal digits of the model's.
    num_samples : int
        Length of the audio that was encoded.
    sample_rate : int
        Its sample rate, in Hz.
    token_rate : float
        Tokens a second, in Hz.
    num_tokens : int
        Number of tokens.
    payload_bytes : int
        What the tokens take.

    Example
    -------
    >>> header = FocalHeader(
    ...     False, 13, "0" * 16, 16000, 16000, 50.0, 50, 82
    ... )
    >>> header.plain_bytes
    82
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
        """What the tokens take without entropy coding."""
        return -(-self.num_tokens * self.bits // 8)


def write_focal(
    path: str | Path, token_file: TokenFile, *, entropy: bool = False
) -> None:
    """Write a ``.focal`` file, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file to write.
    token_file : TokenFile
        What to write. The model's name is left out, and all but the beginning
        of its fingerprint.
    entropy : bool
        Whether to code the tokens' entropy. Where that would not make the
        file smaller, or leave less than a byte for 256 tokens, it is left
        out.

    Raises
    ------
    TokenError
        If a value is out of range, or the codebook size no power of two.
    ImportError
        If entropy coding is asked for and its library is not installed.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.focal"
    >>> file = TokenFile(
    ...     torch.arange(50), "mini", "0" * 64, 16000, 16000, 8192, 50.0
    ... )
    >>> write_focal(path, file)
    >>> path.stat().st_size == HEADER_BYTES + -(-50 * 13 // 8)
    True
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
    """Read a ``.focal`` file, checking all of it.

    Memory and time are bounded by the file's size, which is bounded too.

    Arguments
    ---------
    path : str or Path
        The file to read.

    Returns
    -------
    TokenFile
        Its content, with tokens as int64 [N], without the model's name.

    Raises
    ------
    TokenError
        If the file is missing, damaged, of a newer format or not a ``.focal``
        file, if a value is out of range, or if it is entropy-coded and the
        library for that is not installed.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.focal"
    >>> file = TokenFile(
    ...     torch.arange(50), "mini", "0" * 64, 44100, 44100, 8192, 50.0
    ... )
    >>> write_focal(path, file)
    >>> read_focal(path).num_samples
    44100
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
    """Read what a ``.focal`` file tells about itself.

    The whole file's checksum is compared, but no token is looked at.

    Arguments
    ---------
    path : str or Path
        The file to read.

    Returns
    -------
    FocalHeader
        Its header.

    Raises
    ------
    TokenError
        If the file is missing, damaged, of a newer format or not a ``.focal``
        file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.focal"
    >>> file = TokenFile(
    ...     torch.arange(50), "mini", "0" * 64, 44100, 44100, 8192, 50.0
    ... )
    >>> write_focal(path, file)
    >>> read_header(path).bits
    13
    """
    path = Path(path)
    return _parse(path, _read_bytes(path))


def is_focal(path: str | Path) -> bool:
    """Tell whether a file begins as a ``.focal`` file does.

    Arguments
    ---------
    path : str or Path
        A file that exists.

    Returns
    -------
    bool
        Whether it does, whatever its name.

    Example
    -------
    >>> is_focal("setup.cfg")
    False
    """
    with open(path, "rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _read_bytes(path: Path) -> bytes:
    """Read a file that may be a ``.focal`` file by its size."""
    if not path.is_file():
        raise TokenError(f"{path}: no such file; check the path")
    if path.stat().st_size > _MAX_FILE:
        raise TokenError(
            f"{path}: not a .focal file: more than {_MAX_FILE} bytes; check "
            "the path"
        )
    return path.read_bytes()


def _parse(path: Path, data: bytes) -> FocalHeader:
    """Check a file's bytes but for its tokens; allocates nothing."""
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
        raise _damaged(path, f"{bits} bits a token")
    # Before anything is decoded, which takes time.
    check_span(path, num_samples, sample_rate, token_rate, num_tokens)
    if not header.entropy_coded:
        fits = surplus == 0
    else:
        # A coded file is smaller than a plain one, and it has a least size:
        # without it a few bytes could ask for hours of decoding.
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
    """Write tokens one after another, the highest bit first.

    Arguments
    ---------
    toks : numpy.ndarray
        The tokens, int64 [N], each below ``2**bits``.
    bits : int
        Bits of a token, 1..32.

    Returns
    -------
    bytes
        ``ceil(N * bits / 8)`` bytes; what is left of the last one is zero.

    Example
    -------
    >>> pack_tokens(np.array([1, 2, 3]), 4).hex()
    '1230'
    """
    blocks = []
    for start in range(0, len(toks), _BLOCK):
        words = toks[start : start + _BLOCK].astype(">u4")
        planes = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1)
        blocks.append(np.packbits(planes[:, 32 - bits :]).tobytes())
    return b"".join(blocks)


def unpack_tokens(data: bytes, num_tokens: int, bits: int) -> np.ndarray:
    """Read what :func:`pack_tokens` wrote.

    Arguments
    ---------
    data : bytes
        The packed tokens, no more and no less.
    num_tokens : int
        Number of tokens N.
    bits : int
        Bits of a token, 1..32.

    Returns
    -------
    numpy.ndarray
        The tokens, int64 [N].

    Raises
    ------
    ValueError
        If there are more or fewer bytes, or what is left of the last one is
        not zero.

    Example
    -------
    >>> unpack_tokens(bytes.fromhex("1230"), 3, 4)
    array([1, 2, 3])
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
