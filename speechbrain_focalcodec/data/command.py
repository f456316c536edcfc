"""The command line that the recipes' ``prepare.py`` scripts share."""

import argparse
import inspect
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
        Such as ``prepare_librispeech``; the first line of its docstring is
        the command's description, its arguments are the options.
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
    known = inspect.signature(prepare).parameters
    splits = known["splits"].default
    required = splits is inspect.Parameter.empty
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
        "--splits",
        nargs="+",
        required=required,
        default=None if required else list(splits),
        help="names of the splits"
        + ("" if required else f" (default: {' '.join(splits)})"),
    )
    parser.add_argument(
        "--num_workers", type=int, default=None, help="number of threads"
    )
    parser.add_argument(
        "--max_failures",
        type=float,
        default=known["max_failures"].default,
        metavar="SHARE",
        help="skip this share of the files at most (default: %(default)s)",
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="decode all audio, to find damage that headers hide",
    )
    if "speakers" in known:
        parser.add_argument(
            "--no_speakers",
            dest="speakers",
            action="store_false",
            help="the first folder below a split is not the speaker",
        )
    if "suffixes" in known:
        parser.add_argument(
            "--suffixes",
            nargs="+",
            default=list(known["suffixes"].default),
            help="the files that count (default: %(default)s)",
        )
    options = parser.parse_args(arguments)
    try:
        paths = prepare(**vars(options))
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    for path in paths.values():
        print(path)
