"""Transcripts of LibriSpeech and LibriTTS, chapter by chapter."""

from pathlib import Path

from speechbrain_focalcodec.errors import DataError

__all__ = ["TEXT_SUFFIX", "read_librispeech", "read_libritts"]

# Of LibriTTS.
TEXT_SUFFIX = ".normalized.txt"


def read_librispeech(chapter: Path) -> dict[str, str]:
    """Read a chapter of LibriSpeech: lines of utterance id and text.

    Arguments
    ---------
    chapter : Path
        The folder that holds ``*.trans.txt``.

    Returns
    -------
    dict
        Text by utterance id, of those utterances that have one.

    Raises
    ------
    DataError
        If a file cannot be read or is not UTF-8.

    Example
    -------
    >>> chapter = getfixture("tmp_path")
    >>> _ = (chapter / "84-1.trans.txt").write_text("84-1-0000 GO ON")
    >>> read_librispeech(chapter)
    {'84-1-0000': 'GO ON'}
    """
    texts = {}
    for path in chapter.glob("[!.]*.trans.txt"):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        for line in lines:
            utt_id, _, text = line.strip().partition(" ")
            if text:
                texts[utt_id] = text
    return texts


def read_libritts(chapter: Path) -> dict[str, str]:
    """Read a chapter of LibriTTS: one file for each utterance.

    Arguments
    ---------
    chapter : Path
        The folder that holds ``*.normalized.txt``.

    Returns
    -------
    dict
        Text by utterance id, of those utterances that have one.

    Raises
    ------
    DataError
        If a file cannot be read or is not UTF-8.

    Example
    -------
    >>> chapter = getfixture("tmp_path")
    >>> path = chapter / "84_1_000000_000000.normalized.txt"
    >>> _ = path.write_text("Go on.")
    >>> read_libritts(chapter)
    {'84_1_000000_000000': 'Go on.'}
    """
    texts = {}
    for path in chapter.glob("[!.]*" + TEXT_SUFFIX):
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        if text:
            texts[path.name.removesuffix(TEXT_SUFFIX)] = text
    return texts
