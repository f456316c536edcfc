"""The layouts of LibriSpeech and LibriTTS: speaker/chapter/utterance."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from speechbrain_focalcodec.data import librispeech, libritts

__all__ = ["LAYOUTS", "Chapter", "Layout"]


@dataclass(frozen=True)
class Layout:
    """How a corpus names its utterances.

    Arguments
    ---------
    kind : str
        Its name.
    separator : str
        What stands between speaker, chapter and the rest of a stem.
    rest : re.Pattern
        What the rest of a stem looks like.
    read_texts : Callable
        Takes a chapter's folder and returns its texts by utterance.

    Example
    -------
    >>> LAYOUTS[0].fits("/data/84/121123", "84-121123-0000")
    True
    >>> LAYOUTS[0].fits("/data/takes", "84-121123-0000")
    False
    """

    kind: str
    separator: str
    rest: re.Pattern
    read_texts: Callable[[Path], dict[str, str]]

    def prefix(self, folder: str) -> str | None:
        """What a chapter's stems begin with; None if it is no chapter."""
        above, chapter = os.path.split(folder)
        speaker = os.path.basename(above)
        # isdecimal alone would take other scripts' digits.
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
        speaker = os.path.basename(os.path.dirname(folder))
        return Chapter(self, folder, speaker, self.read_texts(Path(folder)))


@dataclass(frozen=True)
class Chapter:
    """A folder of utterances of one speaker.

    Arguments
    ---------
    layout : Layout
        Whose folder it is.
    folder : str
        Its path.
    speaker : str
        Who speaks.
    texts : dict
        Texts by utterance.

    Example
    -------
    >>> chapter = LAYOUTS[0].open(str(getfixture("tmp_path")))
    >>> chapter.fits("84-121123-0000")
    False
    """

    layout: Layout
    folder: str
    speaker: str
    texts: dict[str, str]

    def fits(self, stem: str) -> bool:
        """Whether a file of this stem is an utterance of the chapter."""
        return self.layout.fits(self.folder, stem)


LAYOUTS = (
    Layout(
        "librispeech",
        "-",
        re.compile(r"[0-9]{4,}"),
        librispeech.read_transcripts,
    ),
    Layout(
        "libritts",
        "_",
        re.compile(r"[0-9]{6,}_[0-9]{6,}"),
        libritts.read_transcripts,
    ),
)
