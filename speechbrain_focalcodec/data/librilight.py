"""Preparation of Libri-Light (16 kHz FLAC of up to hours, unlabelled)."""

import json
from collections.abc import Sequence
from pathlib import Path

from speechbrain_focalcodec.data.manifest import prepare_splits
from speechbrain_focalcodec.data.scan import Corpus

__all__ = ["prepare_librilight", "read_sidecar"]


def prepare_librilight(
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str] = ("small",),
    num_workers: int | None = None,
    skip_prep: bool = False,
    max_failures: float = 0.0,
    decode: bool = False,
) -> dict[str, Path]:
    """Write a manifest, ``save_folder/<split>.json``, for each split.

    The splits have Libri-Light's layout, ``speaker/book/*.flac``, one file a
    chapter. An utterance's id is its path, such as
    ``small/100/sea_fairies/01_baum``. From a ``.json`` beside a file come
    "snr" (dB) and "speech" (seconds with voice activity), where it has them.
    Only headers are read; what an earlier run has read is not read again.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds the splits, or its parent that holds
        ``librilight/``. The manifests' paths are relative to it. It is never
        written to.
    save_folder : str or Path
        Where the manifests go; it must lie outside the data folder.
    splits : sequence of str
        Names of the splits: "small", "medium", "large".
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
    >>> book = tmp / "librilight" / "small" / "100" / "sea_fairies"
    >>> book.mkdir(parents=True)
    >>> soundfile.write(book / "01_baum.flac", numpy.zeros(8000), 16000)
    >>> prepare_librilight(tmp, tmp.parent / "save")["small"].name
    'small.json'
    """
    return prepare_splits(
        Corpus(
            "Libri-Light",
            ("librilight", "LibriLight", "libri-light", "Libri-Light"),
            (".flac",),
            path_ids=True,
            read_facts=read_sidecar,
        ),
        data_folder,
        save_folder,
        splits,
        num_workers,
        skip_prep,
        max_failures,
        decode,
    )


def read_sidecar(path: Path) -> dict[str, float]:
    """Read what the ``.json`` beside a recording says of it.

    Arguments
    ---------
    path : Path
        The audio file.

    Returns
    -------
    dict
        "snr" in dB and "speech" in seconds, where they are known.

    Raises
    ------
    ValueError
        If the file is damaged.

    Example
    -------
    >>> path = getfixture("tmp_path") / "01_baum.flac"
    >>> read_sidecar(path)
    {}
    >>> text = '{"snr": 8.5, "voice_activity": [[0.5, 2.0], [3.0, 4.0]]}'
    >>> _ = path.with_suffix(".json").write_text(text)
    >>> read_sidecar(path)
    {'snr': 8.5, 'speech': 2.5}
    """
    path = path.with_suffix(".json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    facts = {}
    try:
        if about.get("snr") is not None:
            facts["snr"] = float(about["snr"])
        if about.get("voice_activity") is not None:
            parts = about["voice_activity"]
            facts["speech"] = float(sum(stop - start for start, stop in parts))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: snr or voice_activity is not as Libri-Light has them "
            f"({error})"
        ) from error
    return facts
