"""Items of a folder tree of audio files."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
from speechbrain_focalcodec.audio.tree import audio_folders
from speechbrain_focalcodec.corpus.sources.corpora import CORPORA, Corpus
from speechbrain_focalcodec.corpus.sources.item import Item, Source

__all__ = ["FolderSource"]

# train-clean-100, dev-other, an4test_clstk, ...
_SPLIT = re.compile(r"(train|dev|test)(-.+)?|an4(test)?_clstk")


class FolderSource(Source):
    """Every audio file below a folder.

    The id of a file is its path below the folder without suffix. Hidden files
    and folders, and linked folders, are left out.

    The folder belongs to a known corpus if every file in its first folder of
    audio is named like an utterance (see
    :class:`~speechbrain_focalcodec.corpus.sources.corpora.Corpus`). Such files
    have their stem as id, a speaker and, if there is a transcript, a text;
    the column ``split`` holds the folder above the speaker if its name is that
    of a split. Other files of the corpus keep their path as id.
    """

    empty = (
        "has no audio files; check the path (known suffixes: "
        f"{' '.join(AUDIO_SUFFIXES)})"
    )

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, path)
        self.corpus = _recognize(self.base)
        self.kind = self.corpus.name.lower() if self.corpus else "folder"

    def place(self, line: int, item_id: str | None = None) -> str:
        return str(self.path)

    def scan(self) -> Iterator[tuple[int, Item]]:
        skip = len(self.base.removesuffix("/")) + 1
        corpus = self.corpus
        for folder, names in audio_folders(self.base):
            prefix = folder.removesuffix("/") + "/"
            texts: dict[str, str] | None = None
            for name in names:
                stem = os.path.splitext(name)[0]
                if corpus is None or not corpus.is_utterance(folder, stem):
                    yield 0, Item(prefix[skip:] + stem, prefix + name)
                    continue
                if texts is None:
                    read = corpus.read_text
                    texts = read(Path(folder)) if read else {}
                above, speaker = os.path.split(corpus.speaker_folder(folder))
                item = Item(stem, prefix + name, speaker, texts.get(stem))
                split = os.path.basename(above)
                if _SPLIT.fullmatch(split):
                    item = item._replace(extra={"split": split})
                yield 0, item


def _recognize(base: str) -> Corpus | None:
    """The corpus of the first folder that holds audio."""
    for folder, names in audio_folders(base):
        possible = list(CORPORA.values())
        for name in names:
            stem = os.path.splitext(name)[0]
            possible = [c for c in possible if c.is_utterance(folder, stem)]
            if not possible:
                return None
        return possible[0]
    return None
