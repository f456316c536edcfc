"""The table of known corpora: where their files, speakers and texts are."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
from speechbrain_focalcodec.corpus.sources.transcripts import (
    read_an4,
    read_librilight,
    read_librispeech,
    read_libritts,
)

__all__ = ["CORPORA", "WHOLE", "Corpus"]

#: The split that is the whole data folder, if splits are any folders.
WHOLE = "all"


@dataclass(frozen=True)
class Corpus:
    """Layout of a corpus.

    Arguments
    ---------
    name : str
        Name of the corpus.
    folder_names : tuple of str
        Names of the folder that holds the splits; the data folder may be
        that folder or its parent.
    suffixes : sequence of str
        Suffixes of the audio files, in lower case.
    chapters : bool
        Whether files lie in ``split/speaker/chapter/``. Otherwise they may
        lie at any depth, and the split "all" is the whole data folder.
    path_ids : bool
        Whether an utterance's id is its path below the folder that holds
        the splits, without suffix, rather than its name alone.
    speakers : bool
        Whether the first folder below a split is the speaker; a file in
        the split's folder itself has none.
    read_text : Callable, optional
        Takes a folder; returns the transcripts of its files by their stem.
    needs_text : bool
        Whether preparation refuses folders without transcripts.
    read_facts : Callable, optional
        Takes an audio file; returns numbers for its manifest entry. A
        ValueError or OSError makes it a bad file.
    splits : tuple of str
        Splits that are prepared by default.
    max_failures : float
        Share of bad files that is skipped by default.
    utterance : str, optional
        Regular expression of an utterance's path from its speaker on, without
        suffix. Group 1 is the speaker. ``focalcodec tokenize`` recognizes
        folders of the corpus by it.
    """

    name: str
    folder_names: tuple[str, ...] = ()
    suffixes: Sequence[str] = AUDIO_SUFFIXES
    chapters: bool = True
    path_ids: bool = False
    speakers: bool = True
    read_text: Callable[[Path], dict[str, str]] | None = None
    needs_text: bool = False
    read_facts: Callable[[Path], dict[str, float]] | None = None
    splits: tuple[str, ...] = ()
    max_failures: float = 0.0
    utterance: str | None = None

    def is_utterance(self, folder: str, stem: str) -> bool:
        """Whether a file of this stem in this folder is an utterance."""
        if self.utterance is None:
            return False
        speaker = os.path.basename(self.speaker_folder(folder))
        path = os.path.basename(folder) + "/" + stem
        if self.chapters:
            path = f"{speaker}/{path}"
        return re.fullmatch(self.utterance, path) is not None

    def speaker_folder(self, folder: str) -> str:
        """The speaker's folder of a folder that holds utterances."""
        return os.path.dirname(folder) if self.chapters else folder


#: All corpora by name; a new corpus is one entry.
CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "AN4",
            ("wav", "an4/wav", "AN4/wav"),
            (".sph", ".wav", ".flac"),
            chapters=False,
            read_text=read_an4,
            needs_text=True,
            splits=("an4_clstk", "an4test_clstk"),
            utterance="([a-z0-9]+)/(?:an|cen)[0-9]+-\\1-b",
        ),
        Corpus(
            "Folder",
            (),
            chapters=False,
            path_ids=True,
            splits=(WHOLE,),
            max_failures=0.01,
        ),
        Corpus(
            "LibriLight",
            ("librilight", "LibriLight", "libri-light", "Libri-Light"),
            (".flac",),
            path_ids=True,
            read_facts=read_librilight,
            splits=("small",),
        ),
        Corpus(
            "LibriSpeech",
            ("LibriSpeech",),
            (".flac",),
            read_text=read_librispeech,
            utterance="([0-9]+)/([0-9]+)/\\1-\\2-[0-9]{4,}",
        ),
        Corpus(
            "LibriTTS",
            ("LibriTTS", "LibriTTS_R"),
            (".wav",),
            read_text=read_libritts,
            utterance="([0-9]+)/([0-9]+)/\\1_\\2_[0-9]{6,}_[0-9]{6,}",
        ),
    )
}
