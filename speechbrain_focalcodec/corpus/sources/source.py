"""Base class of a corpus's sources."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from speechbrain_focalcodec.corpus.sources.item import Item, problem_of
from speechbrain_focalcodec.errors import DataError

__all__ = ["Source"]


class Source(ABC):
    """Iterates the items of a corpus.

    Iteration is lazy and in any order. It opens no audio, unless a manifest
    has a segment in samples without a sample rate. Repeated ids are found by
    :func:`~speechbrain_focalcodec.corpus.items.write_items`.

    Arguments
    ---------
    path : str or Path
        The folder or file.
    base : str or Path
        The folder that relative paths start from.

    Attributes
    ----------
    kind : str
        "librispeech", "libritts", "an4", "folder", "json", "csv", "kaldi"
        or "list".
    path : Path
        The folder or file, as it was given.
    base : str
        The folder that relative paths start from, absolute.

    Example
    -------
    >>> class Two(Source):
    ...     kind = "two"
    ...     def scan(self):
    ...         yield 1, Item("a", "/data/a.wav")
    ...         yield 2, Item("b", "/data/b.wav")
    >>> [item.id for item in Two("two.txt", "/data")]
    ['a', 'b']
    """

    kind: str
    empty = "has no items"

    def __init__(self, path: str | Path, base: str | Path) -> None:
        self.path = Path(path)
        self.base = os.path.abspath(base)

    @abstractmethod
    def scan(self) -> Iterator[tuple[int, Item]]:
        """Yield items, not yet checked, with their line (0: no line)."""

    def __iter__(self) -> Iterator[Item]:
        line = 0
        item = None
        for line, item in self.scan():
            problem = problem_of(item)
            if problem:
                raise DataError(f"{self.place(line, item.id)}: {problem}")
            yield item
        if item is None:
            raise DataError(f"{self.path}: {self.empty}")

    def place(self, line: int, item_id: str | None = None) -> str:
        """The place of an item, for a message."""
        if line:
            return f"{self.path}, line {line}"
        return f"{self.path}, id {item_id!r}"

    def absolute(self, path: str) -> str:
        """A path as it was written, joined to the base."""
        return os.path.join(self.base, path)
