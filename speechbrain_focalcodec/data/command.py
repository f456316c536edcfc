"""The command line that the recipes' ``prepare.py`` scripts share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from speechbrain_focalcodec.data.corpora import Preparation
from speechbrain_focalcodec.errors import DataError

__all__ = ["run_preparation"]


def run_preparation(
    prepare: Preparation, arguments: Sequence[str] | None = None
) -> None:
    """Prepare a corpus with the options of the command line.

    Arguments
    ---------
    prepare : Preparation
        Such as ``prepare_librispeech``.
    arguments : sequence of str, optional
        The command line; by default that of the process.

    Raises
    ------
    SystemExit
        With the message, if the data is missing or damaged.
    """
    corpus = prepare.corpus
    parser = argparse.ArgumentParser(
        description="Write a manifest, SAVE_FOLDER/SPLIT.json, for each split."
    )
    parser.add_argument(
        "data_folder",
        type=Path,
        help="folder that holds the splits, or its parent; only read from",
    )
    parser.add_argument(
        "save_folder", type=Path, help="folder to write the manifests to"
    )
    default = f" (default: {' '.join(corpus.splits)})" if corpus.splits else ""
    parser.add_argument(
        "--splits",
        nargs="+",
        required=not corpus.splits,
        default=corpus.splits,
        help="names of the splits" + default,
    )
    parser.add_argument(
        "--num_workers", type=int, default=None, help="number of threads"
    )
    parser.add_argument(
        "--max_failures",
        type=float,
        default=corpus.max_failures,
        metavar="SHARE",
        help="skip this share of the files at most (default: %(default)s)",
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="decode all audio, to find damage that headers hide",
    )
    if corpus.name == "Folder":
        parser.add_argument(
            "--no_speakers",
            dest="speakers",
            action="store_false",
            help="the first folder below a split is not the speaker",
        )
        parser.add_argument(
            "--suffixes",
            nargs="+",
            default=list(corpus.suffixes),
            help="suffixes of the audio files (default: %(default)s)",
        )
    options = parser.parse_args(arguments)
    try:
        paths = prepare(**vars(options))
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    for path in paths.values():
        print(path)
