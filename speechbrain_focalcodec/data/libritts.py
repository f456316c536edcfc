"""Preparation of LibriTTS (24 kHz WAV, transcripts optional)."""

from collections.abc import Sequence
from pathlib import Path

from speechbrain_focalcodec.corpus.sources.transcripts import read_libritts
from speechbrain_focalcodec.data.manifest import prepare_splits
from speechbrain_focalcodec.data.scan import Corpus

__all__ = ["prepare_libritts"]


def prepare_libritts(
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str],
    num_workers: int | None = None,
    skip_prep: bool = False,
    max_failures: float = 0.0,
    decode: bool = False,
) -> dict[str, Path]:
    """Write a manifest, ``save_folder/<split>.json``, for each split.

    The splits have LibriTTS's layout: ``speaker/chapter/*.wav``, with a
    ``*.normalized.txt`` beside each where there is one. Only headers are
    read, and no audio is converted: resampling happens in training, on the
    fly. What an earlier run has read is not read again.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds the splits, or its parent that holds
        ``LibriTTS/`` or ``LibriTTS_R/``. The manifests' paths are relative to
        it. It is never written to.
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
    >>> chapter = tmp / "LibriTTS" / "dev-clean" / "84" / "121123"
    >>> chapter.mkdir(parents=True)
    >>> audio = chapter / "84_121123_000007_000001.wav"
    >>> soundfile.write(audio, numpy.zeros(8000), 24000)
    >>> prepare_libritts(
    ...     tmp / "LibriTTS", tmp / "save", ["dev-clean"]
    ... )["dev-clean"].name
    'dev-clean.json'
    """
    return prepare_splits(
        Corpus(
            "LibriTTS",
            ("LibriTTS", "LibriTTS_R"),
            (".wav",),
            read_text=read_libritts,
        ),
        data_folder,
        save_folder,
        splits,
        num_workers,
        skip_prep,
        max_failures,
        decode,
    )
