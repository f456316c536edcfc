"""Preparation of LibriSpeech (16 kHz FLAC, transcripts optional)."""

from collections.abc import Sequence
from pathlib import Path

from speechbrain_focalcodec.corpus.sources.transcripts import read_librispeech
from speechbrain_focalcodec.data.manifest import prepare_splits
from speechbrain_focalcodec.data.scan import Corpus

__all__ = ["prepare_librispeech"]


def prepare_librispeech(
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str],
    num_workers: int | None = None,
    skip_prep: bool = False,
    max_failures: float = 0.0,
    decode: bool = False,
) -> dict[str, Path]:
    """Write a manifest, ``save_folder/<split>.json``, for each split.

    The splits have LibriSpeech's layout: ``speaker/chapter/*.flac``, with
    transcripts in ``*.trans.txt`` where there are any. Only headers are read;
    what an earlier run has read is not read again.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds the splits, or its parent that holds
        ``LibriSpeech/``. The manifests' paths are relative to it. It is never
        written to.
    save_folder : str or Path
        Where the manifests go; it must lie outside the data folder.
    splits : sequence of str
        Names of the splits, for example ``["train-clean-100", "dev-clean"]``.
    num_workers : int, optional
        Number of threads; by default a few more than the machine has cores.
    skip_prep : bool
        Do nothing but return the paths (the manifests exist already).
    max_failures : float
        Share of a split's files that may be unreadable, and are then
        skipped and listed in ``SPLIT.skipped.tsv``.
    decode : bool
        Decode each file to its end, to find damage that headers hide.

    Returns
    -------
    dict
        Path of the manifest for each split.

    Raises
    ------
    DataError
        When the data folder or a split is missing, a split is empty, too
        many files are unreadable, or the save folder lies in the data
        folder.

    Example
    -------
    >>> import numpy, soundfile
    >>> tmp = getfixture("tmp_path")
    >>> chapter = tmp / "LibriSpeech" / "dev-clean" / "84" / "121123"
    >>> chapter.mkdir(parents=True)
    >>> audio = chapter / "84-121123-0000.flac"
    >>> soundfile.write(audio, numpy.zeros(8000), 16000)
    >>> prepare_librispeech(
    ...     tmp / "LibriSpeech", tmp / "save", ["dev-clean"]
    ... )["dev-clean"].name
    'dev-clean.json'
    """
    return prepare_splits(
        Corpus(
            "LibriSpeech",
            ("LibriSpeech",),
            (".flac",),
            read_text=read_librispeech,
        ),
        data_folder,
        save_folder,
        splits,
        num_workers,
        skip_prep,
        max_failures,
        decode,
    )
