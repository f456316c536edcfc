"""Token files: the tokens of one recording and the model they belong to.

There are two formats with one content: ``.focal``, the compact one
(:mod:`speechbrain_focalcodec.tokens.focal`), and ``.npz``, which NumPy reads
(:mod:`speechbrain_focalcodec.tokens.npz`). Here a file finds its format.
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
    """Write a token file, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file to write, with suffix ``.focal`` or ``.npz``.
    token_file : TokenFile
        What to write.
    entropy : bool
        Whether to code the entropy of a ``.focal`` file's tokens.

    Raises
    ------
    TokenError
        If a value is out of range or the suffix is another.
    ImportError
        If entropy coding is asked for and its library is not installed.

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
    """Read a token file, checking all of it.

    Arguments
    ---------
    path : str or Path
        The file to read. Its first bytes tell its format.

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
    >>> path = getfixture("tmp_path") / "a.focal"
    >>> _ = path.write_bytes(b"not a token file")
    >>> load_tokens(path)
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.TokenError: ...a.focal: not a .focal file...
    """
    path = Path(path)
    if not path.is_file():
        raise TokenError(f"{path}: no such file; check the path")
    # A damaged file is named by the format that its name tells.
    named = path.suffix.lower() == ".focal" and not zipfile.is_zipfile(path)
    return read_focal(path) if is_focal(path) or named else read_archive(path)
