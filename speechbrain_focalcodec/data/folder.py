"""Preparation of any folder of audio files."""

from collections.abc import Sequence
from pathlib import Path

from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
from speechbrain_focalcodec.data.manifest import prepare_splits
from speechbrain_focalcodec.data.scan import WHOLE, Corpus

__all__ = ["prepare_folder"]


def prepare_folder(
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str] = (WHOLE,),
    num_workers: int | None = None,
    skip_prep: bool = False,
    max_failures: float = 0.01,
    decode: bool = False,
    speakers: bool = True,
    suffixes: Sequence[str] = AUDIO_SUFFIXES,
) -> dict[str, Path]:
    """Write a manifest, ``save_folder/<split>.json``, for each split.

    A split is a sub-folder with audio files at any depth, of any formats,
    sample rates and numbers of channels, or "all": the whole data folder. An
    utterance's id is its path below the data folder without suffix. Hidden
    files and folders, and linked folders, are left out. Only headers are
    read; what an earlier run has read is not read again.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds the splits. The manifests' paths are relative
        to it. It is never written to.
    save_folder : str or Path
        Where the manifests go; it must lie outside the data folder.
    splits : sequence of str
        Names of sub-folders, or "all".
    num_workers : int, optional
        Number of threads; by default a few more than the machine has cores.
    skip_prep : bool
        Do nothing but return the paths (the manifests exist already).
    max_failures : float
        Share of a split's files that may be unusable (damaged, empty, two
        of one name), and are then skipped and listed in
        ``SPLIT.skipped.tsv``.
    decode : bool
        Decode each file to its end, to find damage that headers hide.
    speakers : bool
        Whether the first folder below a split is the speaker. Files that
        lie in the split's folder itself have none.
    suffixes : sequence of str
        The files that count, by suffix.

    Returns
    -------
    dict
        Path of the manifest for each split.

    Raises
    ------
    DataError
        When the data folder or a split is missing, a split is empty, too
        many files are unusable, or the save folder lies in the data folder.

    Example
    -------
    >>> import numpy, soundfile
    >>> tmp = getfixture("tmp_path")
    >>> (tmp / "data" / "anna" / "monday").mkdir(parents=True)
    >>> audio = tmp / "data" / "anna" / "monday" / "1.ogg"
    >>> soundfile.write(audio, numpy.zeros(8000), 16000)
    >>> paths = prepare_folder(tmp / "data", tmp / "save")
    >>> from speechbrain_focalcodec.data.manifest import read_manifest
    >>> read_manifest(paths["all"])["anna/monday/1"]["spk_id"]
    'anna'
    """
    return prepare_splits(
        Corpus(
            "the data",
            suffixes=tuple(suffix.lower() for suffix in suffixes),
            chapters=False,
            path_ids=True,
            speakers=speakers,
        ),
        data_folder,
        save_folder,
        splits,
        num_workers,
        skip_prep,
        max_failures,
        decode,
    )
