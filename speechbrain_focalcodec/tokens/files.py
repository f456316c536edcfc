"""Token files: the tokens of one recording and their model.

There are two formats: the compact ``.focal``
(:mod:`speechbrain_focalcodec.tokens.focal`), and ``.npz``, which NumPy reads
(:mod:`speechbrain_focalcodec.tokens.npz`).
"""

import zipfile
from pathlib import Path

from speechbrain_focalcodec.errors import TokenError
from speechbrain_focalcodec.tokens.content import MAX_TOKENS, TokenFile
from speechbrain_focalcodec.tokens.focal import (
    is_focal,
    read_focal,
    write_focal,
)
from speechbrain_focalcodec.tokens.npz import read_archive, write_archive

__all__ = [
    "MAX_TOKENS",
    "TOKEN_SUFFIXES",
    "TokenFile",
    "load_tokens",
    "save_tokens",
]

TOKEN_SUFFIXES = (".focal", ".npz")


def save_tokens(
    path: str | Path, token_file: TokenFile, *, entropy: bool = False
) -> None:
    """Write a token file, atomically.

    Arguments
    ---------
    path : str or Path
        The file to write, with suffix ``.focal`` or ``.npz``.
    token_file : TokenFile
        Its content.
    entropy : bool
        Whether to entropy-code the tokens of a ``.focal`` file.

    Raises
    ------
    TokenError
        If a value is out of range or the suffix is another.
    ImportError
        If the library for entropy coding is not installed.

    Example
    -------
    >>> import torch
    >>> path = getfixture("tmp_path") / "a.focal"
    >>> file = TokenFile(
    ...     torch.arange(50), "mini", "0" * 64, 16000, 16000, 8192, 50.0
    ... )
    >>> save_tokens(path, file)
    >>> load_tokens(path).toks.shape
    torch.Size([50])
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in TOKEN_SUFFIXES:
        raise TokenError(
            f"{path}: a token file's name must end in "
            f"{' or '.join(TOKEN_SUFFIXES)}"
        )
    if suffix == ".focal":
        write_focal(path, token_file, entropy=entropy)
    elif entropy:
        raise TokenError(
            f"{path}: only .focal files are entropy-coded; name one"
        )
    else:
        write_archive(path, token_file)


def load_tokens(path: str | Path) -> TokenFile:
    """Read and check a token file.

    Arguments
    ---------
    path : str or Path
        The file to read; its first bytes select the format.

    Returns
    -------
    TokenFile
        Its content, with tokens as int64 [N].

    Raises
    ------
    TokenError
        If the file is missing, damaged, not a token file, or a value is out
        of range.
    """
    path = Path(path)
    if not path.is_file():
        raise TokenError(f"{path}: no such file; check the path")
    # The error of a damaged file depends on its suffix.
    named = path.suffix.lower() == ".focal" and not zipfile.is_zipfile(path)
    return read_focal(path) if is_focal(path) or named else read_archive(path)
