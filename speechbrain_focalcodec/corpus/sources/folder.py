"""A folder tree of audio files."""

import os
from collections.abc import Iterator
from pathlib import Path

from speechbrain_focalcodec.audio import AUDIO_SUFFIXES
from speechbrain_focalcodec.corpus.sources.item import Item
from speechbrain_focalcodec.corpus.sources.layouts import LAYOUTS, Layout
from speechbrain_focalcodec.corpus.sources.source import Source
from speechbrain_focalcodec.errors import DataError

__all__ = ["FolderSource"]

_SUFFIXES = frozenset(AUDIO_SUFFIXES)


class FolderSource(Source):
    """Every audio file below a folder.

    What counts is what
    :func:`~speechbrain_focalcodec.audio.find_audio_files` finds: known
    suffixes; no hidden files, hidden folders or linked folders. The id of a
    file is its path below the folder without suffix.

    The folder has the layout of LibriSpeech or LibriTTS when the first of
    its folders that holds audio, in sorted order, is ``speaker/chapter``,
    both numbers, and the name of *every* audio file in it begins with these
    two: ``speaker-chapter-NNNN`` or ``speaker_chapter_NNNNNN_NNNNNN``. (So
    the folder may be the corpus, a split, a speaker or a chapter.) The id of
    each file that fits is then its stem, its speaker the folder's name, its
    text in the transcripts beside it; a file that does not fit keeps the id
    of an ordinary one.

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
        """Yield an item a file."""
        waiting = [self.base]
        while waiting:
            folder = waiting.pop()
            prefix = folder.removesuffix("/") + "/"
            skip = len(self.base.removesuffix("/")) + 1
            below = prefix[skip:]
            chapter = None
            folders = []
            for is_folder, name in _visible(folder):
                if is_folder:
                    folders.append(prefix + name)
                    continue
                stem = os.path.splitext(name)[0]
                if self.layout:
                    if chapter is None:
                        chapter = self.layout.open(folder)
                    if chapter.fits(stem):
                        yield (
                            0,
                            Item(
                                stem,
                                prefix + name,
                                chapter.speaker,
                                chapter.texts.get(stem),
                            ),
                        )
                        continue
                yield 0, Item(below + stem, prefix + name)
            waiting += sorted(folders, reverse=True)


def _visible(folder: str) -> Iterator[tuple[bool, str]]:
    """Yield the folders and audio files in a folder.

    Beside find_audio_files this is lazy, so that folders of millions of
    files can be read, and leaves out devices and pipes, which could block.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield True, name
                elif os.path.splitext(name)[1].lower() in _SUFFIXES and (
                    entry.is_file(follow_symlinks=False)
                    or (entry.is_symlink() and not entry.is_dir())
                ):
                    yield False, name
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot be listed "
            f"({error.strerror}); check its permissions"
        ) from error


def _recognize(base: str) -> Layout | None:
    """The layout of the first folder that holds audio."""
    waiting = [base]
    while waiting:
        folder = waiting.pop()
        possible = None
        folders = []
        for is_folder, name in _visible(folder):
            if is_folder:
                folders.append(os.path.join(folder, name))
                continue
            stem = os.path.splitext(name)[0]
            if possible is None:
                possible = list(LAYOUTS)
            possible = [
                layout for layout in possible if layout.fits(folder, stem)
            ]
            if not possible:
                return None
        if possible:
            return possible[0]
        waiting += sorted(folders, reverse=True)
    return None
