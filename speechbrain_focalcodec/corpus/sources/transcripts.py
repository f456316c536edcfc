"""Reads the transcripts and other labels that corpora have beside audio."""

import json
import re
from functools import lru_cache
from pathlib import Path

from speechbrain_focalcodec.errors import DataError

__all__ = ["read_an4", "read_librilight", "read_librispeech", "read_libritts"]

_LIBRITTS_SUFFIX = ".normalized.txt"
# "<s> ENTER SIX TWO </s> (an254-fash-b)"; some files have no <s> and </s>.
_AN4_LINE = re.compile(r"(.*)\((\S+)\)\s*")


def read_librispeech(chapter: Path) -> dict[str, str]:
    """Read a chapter's ``*.trans.txt``: lines of utterance id and text."""
    texts = {}
    for path in chapter.glob("[!.]*.trans.txt"):
        for line in _read(path).splitlines():
            utt_id, _, text = line.strip().partition(" ")
            if text:
                texts[utt_id] = text
    return texts


def read_libritts(chapter: Path) -> dict[str, str]:
    """Read a chapter's ``*.normalized.txt``: one file per utterance."""
    texts = {}
    for path in chapter.glob("[!.]*" + _LIBRITTS_SUFFIX):
        if text := _read(path).strip():
            texts[path.name.removesuffix(_LIBRITTS_SUFFIX)] = text
    return texts


def read_an4(speaker: Path) -> dict[str, str]:
    """Read AN4's ``etc/*.transcription``, in a folder above the speaker's."""
    for folder in list(speaker.parents)[:4]:
        if texts := _read_an4(folder / "etc"):
            return texts
    return {}


@lru_cache(maxsize=8)
def _read_an4(folder: Path) -> dict[str, str]:
    texts = {}
    for path in sorted(folder.glob("*.transcription")):
        for line in _read(path).splitlines():
            if match := _AN4_LINE.fullmatch(line.strip()):
                words = match[1].split()
                text = " ".join(w for w in words if w not in ("<s>", "</s>"))
                if text:
                    texts[match[2]] = text
    return texts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_librilight(path: Path) -> dict[str, float]:
    """Read the ``.json`` beside a recording of Libri-Light.

    Returns "snr" in dB and "speech" in seconds, if known. Raises ValueError
    if the file is damaged.
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
