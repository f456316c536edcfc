"""Opens a source of a corpus by the kind of its path."""

from pathlib import Path

from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
from speechbrain_focalcodec.corpus.sources.file_list import ListSource
from speechbrain_focalcodec.corpus.sources.folder import FolderSource
from speechbrain_focalcodec.corpus.sources.kaldi import KaldiSource
from speechbrain_focalcodec.corpus.sources.manifest import (
    CsvSource,
    JsonSource,
)
from speechbrain_focalcodec.corpus.sources.source import Source
from speechbrain_focalcodec.errors import DataError

__all__ = ["open_source"]

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
LIST_SUFFIXES = (".txt", ".lst", ".list")
KALDI_SUFFIX = ".scp"


def open_source(
    source: str | Path, data_root: str | Path | None = None
) -> Source:
    """Open the source of a corpus.

    Arguments
    ---------
    source : str or Path
        A folder with audio (LibriSpeech's and LibriTTS's layouts are
        recognised), a SpeechBrain manifest (.json, .csv), JSON lines, a
        table (.tsv), a Kaldi ``wav.scp`` or the folder that holds one, or a
        list of files (.txt).
    data_root : str or Path, optional
        Folder that replaces ``{data_root}`` and ``$data_root`` in a manifest,
        and that relative paths start from; the source's folder by default.
        Not for folders with audio.

    Returns
    -------
    Source
        Its items; see :class:`Source`.

    Raises
    ------
    DataError
        If the source does not exist or is of another kind. Errors in its
        content are raised when it is iterated.

    Example
    -------
    >>> path = getfixture("tmp_path") / "files.txt"
    >>> _ = path.write_text("one.wav\\ntwo.wav\\n")
    >>> source = open_source(path)
    >>> source.kind, [item.id for item in source]
    ('list', ['one', 'two'])
    """
    source = Path(source)
    if data_root is not None and not Path(data_root).is_dir():
        raise DataError(f"{data_root}: no such folder; check --data-root")
    base = source.parent if data_root is None else Path(data_root)
    if source.is_dir():
        if (source / f"wav{KALDI_SUFFIX}").is_file():
            return KaldiSource(source, source if data_root is None else base)
        if data_root is not None:
            raise DataError(
                f"{source}: is a folder of audio, which --data-root is not "
                "for; leave it out"
            )
        return FolderSource(source)
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder; check the path")
    suffix = source.suffix.lower()
    if suffix == KALDI_SUFFIX:
        return KaldiSource(source, base)
    if suffix in JSON_SUFFIXES:
        return JsonSource(source, data_root)
    if suffix in TABLE_SUFFIXES:
        return CsvSource(source, data_root)
    if suffix in LIST_SUFFIXES:
        return ListSource(source, base)
    if suffix in AUDIO_SUFFIXES:
        raise DataError(
            f"{source}: is one audio file; give the folder it is in, a "
            "manifest or a list of files"
        )
    known = (*JSON_SUFFIXES, *TABLE_SUFFIXES, KALDI_SUFFIX, *LIST_SUFFIXES)
    raise DataError(
        f"{source}: is not a known kind of source; give a folder with audio "
        f"or a file with one of the suffixes {' '.join(known)}"
    )
