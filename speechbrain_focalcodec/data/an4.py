"""Preparation of AN4 (CMU's spelled names and numbers, 1991)."""

import re
from collections.abc import Sequence
from pathlib import Path

from speechbrain_focalcodec.data.manifest import prepare_splits
from speechbrain_focalcodec.data.scan import Corpus
from speechbrain_focalcodec.errors import DataError

__all__ = ["prepare_an4", "read_an4_transcripts"]

# "<s> ENTER SIX TWO </s> (an254-fash-b)"; the test's lines have no <s>.
_LINE = re.compile(r"(.*)\((\S+)\)\s*")


def prepare_an4(
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str] = ("an4_clstk", "an4test_clstk"),
    num_workers: int | None = None,
    skip_prep: bool = False,
    max_failures: float = 0.0,
    decode: bool = False,
) -> dict[str, Path]:
    """Write a manifest, ``save_folder/<split>.json``, for each split.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds ``wav/`` and ``etc/``, or its parent. The
        audio may be NIST Sphere, as it is distributed, or converted; the
        transcripts are those of ``etc/*.transcription``. It is never written
        to.
    save_folder : str or Path
        Where the manifests go; it must lie outside the data folder.
    splits : sequence of str
        ``an4_clstk`` (training) and ``an4test_clstk``.
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
        When the data folder, a split or the transcripts are missing, too
        many files are unreadable, or the save folder lies in the data folder.

    Example
    -------
    >>> import numpy, soundfile
    >>> tmp = getfixture("tmp_path")
    >>> (tmp / "data" / "wav" / "an4_clstk" / "fash").mkdir(parents=True)
    >>> (tmp / "data" / "etc").mkdir()
    >>> _ = (tmp / "data" / "etc" / "an4_train.transcription").write_text(
    ...     "<s> YES </s> (an251-fash-b)"
    ... )
    >>> audio = tmp / "data" / "wav" / "an4_clstk" / "fash" / "an251-fash-b.wav"
    >>> soundfile.write(audio, numpy.zeros(8000), 16000)
    >>> paths = prepare_an4(tmp / "data", tmp / "save", ["an4_clstk"])
    >>> from speechbrain_focalcodec.data.manifest import read_manifest
    >>> read_manifest(paths["an4_clstk"])["an251-fash-b"]["text"]
    'YES'
    """
    return prepare_splits(
        Corpus(
            "AN4",
            ("wav", "an4/wav", "AN4/wav"),
            (".sph", ".wav", ".flac"),
            chapters=False,
            read_text=read_an4_transcripts,
        ),
        data_folder,
        save_folder,
        splits,
        num_workers,
        skip_prep,
        max_failures,
        decode,
    )


def read_an4_transcripts(folder: Path) -> dict[str, str]:
    """Read the transcripts that belong to a folder of AN4.

    Arguments
    ---------
    folder : Path
        A speaker's folder, ``wav/SPLIT/SPEAKER``.

    Returns
    -------
    dict
        Text by utterance id, without the marks of begin and end.

    Raises
    ------
    DataError
        If there are none, or they cannot be read.

    Example
    -------
    >>> tmp = getfixture("tmp_path")
    >>> (tmp / "wav" / "an4test_clstk" / "fcaw").mkdir(parents=True)
    >>> (tmp / "etc").mkdir()
    >>> _ = (tmp / "etc" / "an4_test.transcription").write_text(
    ...     "RUBOUT G M (an406-fcaw-b)\\n"
    ... )
    >>> read_an4_transcripts(tmp / "wav" / "an4test_clstk" / "fcaw")
    {'an406-fcaw-b': 'RUBOUT G M'}
    """
    etc = next(
        (
            parent / "etc"
            for parent in folder.parents[1:4]
            if (parent / "etc").is_dir()
        ),
        None,
    )
    files = sorted(etc.glob("*.transcription")) if etc else []
    if not files:
        raise DataError(
            f"{folder}: AN4's transcripts, etc/*.transcription beside wav/, "
            "are missing"
        )
    texts = {}
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        for line in lines:
            if match := _LINE.fullmatch(line.strip()):
                words = match[1].split()
                text = " ".join(w for w in words if w not in ("<s>", "</s>"))
                if text:
                    texts[match[2]] = text
    return texts
