"""The command line that the recipes' ``prepare.py`` scripts share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from speechbrain_focalcodec.errors import DataError

__all__ = ["run_preparation"]


def run_preparation(
    prepare: Callable[..., dict[str, Path]],
    arguments: Sequence[str] | None = None,
) -> None:
    """Prepare a corpus as the command line asks.

    Arguments
    ---------
    prepare : Callable
        ``prepare_librispeech`` or ``prepare_libritts``; the first line of its
        docstring is the command's description.
    arguments : sequence of str, optional
        The command line; by default that of the process.

    Raises
    ------
    SystemExit
        With the message, when the data is missing or damaged.

    Example
    -------
    >>> from speechbrain_focalcodec.data.librispeech import prepare_librispeech
    >>> run_preparation(
    ...     prepare_librispeech, ["nowhere", "save", "--splits", "dev-clean"]
    ... )  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    SystemExit: error: the data folder nowhere does not exist: ...
    """
    summary = (prepare.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary.replace("`", ""))
    parser.add_argument(
        "data_folder",
        type=Path,
        help="folder that holds the splits, or its parent; only read from",
    )
    parser.add_argument(
        "save_folder", type=Path, help="folder to write the manifests to"
    )
    parser.add_argument(
        "--splits", nargs="+", required=True, help="names of the splits"
    )
    parser.add_argument(
        "--num_workers", type=int, default=None, help="number of threads"
    )
    options = parser.parse_args(arguments)
    try:
        paths = prepare(**vars(options))
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    for path in paths.values():
        print(path)
