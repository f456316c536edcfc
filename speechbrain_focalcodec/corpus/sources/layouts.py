"""Defines the folder layouts of LibriSpeech, LibriTTS and AN4."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from speechbrain_focalcodec.corpus.sources.transcripts import (
    read_librispeech,
    read_libritts,
)

__all__ = ["LAYOUTS", "An4", "Chapter", "Layout"]


@dataclass(frozen=True)
class Layout:
    """Names of utterances in a corpus of speaker/chapter/utterance.

    Arguments
    ---------
    kind : str
        Its name.
    separator : str
        Separator of speaker, chapter and the rest of a stem.
    rest : re.Pattern
        Pattern of the rest of a stem.
    read_texts : Callable
        Takes a chapter's folder and returns its texts by utterance.

    Example
    -------
    >>> LAYOUTS[1].fits("/data/84/121123", "84-121123-0000")
    True
    >>> LAYOUTS[1].fits("/data/takes", "84-121123-0000")
    False
    """

    kind: str
    separator: str
    rest: re.Pattern
    read_texts: Callable[[Path], dict[str, str]]

    def prefix(self, folder: str) -> str | None:
        """Prefix of a chapter's stems; None if it is no chapter."""
        above, chapter = os.path.split(folder)
        speaker = os.path.basename(above)
        # isdecimal alone accepts other scripts' digits.
        if not (speaker + chapter).isascii() or not (
            speaker.isdecimal() and chapter.isdecimal()
        ):
            return None
        return f"{speaker}{self.separator}{chapter}{self.separator}"

    def fits(self, folder: str, stem: str) -> bool:
        """Whether a file of this stem in this folder is an utterance."""
        prefix = self.prefix(folder)
        return (
            prefix is not None
            and stem.startswith(prefix)
            and self.rest.fullmatch(stem, len(prefix)) is not None
        )

    def open(self, folder: str) -> "Chapter":
        """A folder's utterances, with their texts if it is a chapter."""
        if self.prefix(folder) is None:
            return Chapter(self, folder, "", {})
        above, speaker = os.path.split(os.path.dirname(folder))
        texts = self.read_texts(Path(folder))
        return Chapter(self, folder, speaker, texts, _split_of(above))


@dataclass(frozen=True)
class Chapter:
    """A folder of utterances of one speaker.

    Arguments
    ---------
    layout : Layout
        Layout of the corpus.
    folder : str
        Its path.
    speaker : str
        The speaker.
    texts : dict
        Texts by utterance.
    split : str, optional
        The speaker's split, such as ``train-clean-100``; `None` if the folder
        above the speaker's is no split.

    Example
    -------
    >>> chapter = LAYOUTS[1].open(str(getfixture("tmp_path")))
    >>> chapter.fits("84-121123-0000")
    False
    """

    layout: "Layout | An4"
    folder: str
    speaker: str
    texts: dict[str, str]
    split: str | None = None

    def fits(self, stem: str) -> bool:
        """Whether a file of this stem is an utterance of the chapter."""
        return self.layout.fits(self.folder, stem)


class An4:
    """AN4's layout: speaker/utterance-speaker-b, texts in ``etc``.

    The texts are in ``etc/*.transcription``, in one of the folders above the
    speaker's.

    Example
    -------
    >>> An4().fits("/AN4/wav/an4test_clstk/fcaw", "an406-fcaw-b")
    True
    >>> An4().fits("/AN4/wav/an4test_clstk/fcaw", "an406-mmxg-b")
    False
    """

    kind = "an4"

    def fits(self, folder: str, stem: str) -> bool:
        """Whether a file of this stem in this folder is an utterance."""
        found = _AN4_STEM.fullmatch(stem)
        return found is not None and found[1] == os.path.basename(folder)

    def open(self, folder: str) -> Chapter:
        """A folder's utterances, with their texts where they are found."""
        for above in list(Path(folder).parents)[:_AN4_DEPTH]:
            texts = _read_an4(above / "etc")
            if texts:
                break
        split, speaker = os.path.split(folder)
        return Chapter(self, folder, speaker, texts, _split_of(split))


# train-clean-100, dev-other, an4test_clstk, ...
_SPLIT = re.compile(r"(train|dev|test)(-.+)?|an4(test)?_clstk")


def _split_of(folder: str) -> str | None:
    name = os.path.basename(folder)
    return name if _SPLIT.fullmatch(name) else None


_AN4_STEM = re.compile(r"(?:an|cen)[0-9]+-([a-z0-9]+)-b")
_AN4_DEPTH = 3  # AN4/wav/an4test_clstk
# "<s> ENTER NINE </s> (an417-fjlp-b)", or without the marks
_AN4_LINE = re.compile(r"(?:<s>)?(.*?)(?:</s>)?\s*\(([^()]+)\)\s*")


@lru_cache(maxsize=8)
def _read_an4(folder: Path) -> dict[str, str]:
    texts = {}
    for path in sorted(folder.glob("an4*.transcription")):
        lines = path.read_text(encoding="utf-8", errors="replace")
        for found in map(_AN4_LINE.fullmatch, lines.splitlines()):
            if found:
                texts[found[2]] = found[1].strip()
    return texts


LAYOUTS: tuple[Layout | An4, ...] = (
    An4(),
    Layout(
        "librispeech",
        "-",
        re.compile(r"[0-9]{4,}"),
        read_librispeech,
    ),
    Layout(
        "libritts",
        "_",
        re.compile(r"[0-9]{6,}_[0-9]{6,}"),
        read_libritts,
    ),
)
