"""Lists the audio files of a folder tree."""

import os
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
from speechbrain_focalcodec.audio.tree import audio_tree
from speechbrain_focalcodec.corpus.sources.item import Item
from speechbrain_focalcodec.corpus.sources.layouts import LAYOUTS, An4, Layout
from speechbrain_focalcodec.corpus.sources.source import Source

__all__ = ["FolderSource"]

_FOLDER = itemgetter(0)


class FolderSource(Source):
    """All audio files below a folder.

    These are the files of
    :func:`~speechbrain_focalcodec.audio.files.find_audio_files`: known
    suffixes; no hidden files, hidden folders or linked folders. The id of a
    file is its path below the folder without suffix.

    The folder has the layout of LibriSpeech or LibriTTS if its first folder
    with audio, in sorted order, is ``speaker/chapter``, both numbers, and the
    name of *every* audio file in it begins with these two:
    ``speaker-chapter-NNNN`` or ``speaker_chapter_NNNNNN_NNNNNN``. (So the
    folder may be the corpus, a split, a speaker or a chapter.) The id of a
    matching file is its stem, the speaker is the folder's name, and the text
    comes from the transcripts; another file has its path as id. AN4 is
    recognised by ``speaker`` folders in which every audio file is named
    ``anNNN-speaker-b`` or ``cenN-speaker-b``. If the folder above the
    speakers is a split, such as ``dev-clean``, items have a column ``split``.

    Arguments
    ---------
    path : str or Path
        The folder.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "a").mkdir()
    >>> (folder / "a" / "b.wav").touch()
    >>> source = FolderSource(folder)
    >>> source.kind, [item.id for item in source]
    ('folder', ['a/b'])
    """

    empty = (
        "has no audio files; check the path (known suffixes: "
        f"{' '.join(AUDIO_SUFFIXES)})"
    )

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, path)
        self.layout = _recognize(self.base)
        self.kind = self.layout.kind if self.layout else "folder"

    def place(self, line: int, item_id: str | None = None) -> str:
        """The place of an item, for a message."""
        return str(self.path)

    def scan(self) -> Iterator[tuple[int, Item]]:
        """Yield an item per file."""
        skip = len(self.base.removesuffix("/")) + 1
        for folder, files in groupby(audio_tree(self.base), _FOLDER):
            prefix = folder.removesuffix("/") + "/"
            below = prefix[skip:]
            chapter = self.layout.open(folder) if self.layout else None
            for _, name in files:
                stem = os.path.splitext(name)[0]
                if chapter and chapter.fits(stem):
                    speaker, text = chapter.speaker, chapter.texts.get(stem)
                    item = Item(stem, prefix + name, speaker, text)
                    if chapter.split is not None:
                        item = item._replace(extra={"split": chapter.split})
                    yield 0, item
                else:
                    yield 0, Item(below + stem, prefix + name)


def _recognize(base: str) -> Layout | An4 | None:
    """Layout of the first folder with audio."""
    for folder, files in groupby(audio_tree(base), _FOLDER):
        possible: list[Layout | An4] = list(LAYOUTS)
        for _, name in files:
            stem = os.path.splitext(name)[0]
            possible = [
                layout for layout in possible if layout.fits(folder, stem)
            ]
            if not possible:
                return None
        return possible[0]
    return None
