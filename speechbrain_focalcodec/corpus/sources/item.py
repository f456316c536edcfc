"""Items of a corpus, and the base class of its sources."""

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from speechbrain_focalcodec.errors import DataError

__all__ = ["Item", "Source", "Value", "problem_of", "strip_suffix"]

Value = str | int | float | bool | None

# Control characters, line and paragraph separators, and the lone surrogates
# that Python makes of a file name's undecodable bytes.
_BAD_IN_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BAD_IN_PATH = re.compile("[\x00\ud800-\udfff]")


class Item(NamedTuple):
    """An audio file, or a part of one, with its labels.

    Arguments
    ---------
    id : str
        Unique in the corpus; not empty and without control characters.
    path : str
        Absolute path of the audio file.
    speaker : str, optional
        Speaker.
    text : str, optional
        Transcript.
    start : float, optional
        Start of the part in seconds; the file's start if None.
    stop : float, optional
        End of the part in seconds; the file's end if None.
    extra : mapping
        Other columns: str, int, float, bool or None by name.
    """

    id: str
    path: str
    speaker: str | None = None
    text: str | None = None
    start: float | None = None
    stop: float | None = None
    extra: Mapping[str, Value] = MappingProxyType({})


class Source(ABC):
    """Reads the items of a corpus.

    Each iteration reads them anew, lazily and in no order. Audio is not
    opened, except for the sample rate of a part in samples. Ids may repeat:
    :func:`~speechbrain_focalcodec.corpus.items.write_items` checks them.

    Arguments
    ---------
    path : str or Path
        The folder or file that the user named.
    base : str or Path
        The folder that relative paths start from.

    Attributes
    ----------
    kind : str
        "librispeech", "libritts", "an4", "folder", "json", "csv", "kaldi"
        or "list".
    """

    kind: str
    empty = "has no items"

    def __init__(self, path: str | Path, base: str | Path) -> None:
        self.path = Path(path)
        self.base = os.path.abspath(base)

    @abstractmethod
    def scan(self) -> Iterator[tuple[int, Item]]:
        """Yield line (0 if there is none) and item, not yet checked."""

    def __iter__(self) -> Iterator[Item]:
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
        """Join a path to the base."""
        return os.path.join(self.base, path)


def problem_of(item: Item) -> str:
    """Check an item without its file; return an error message, or ""."""
    if not item.id or item.id.isspace():
        return "the id is empty; give it one"
    # isprintable is fast, and true of most ids.
    if not item.id.isprintable() and _BAD_IN_ID.search(item.id):
        return (
            f"the id {item.id!r} has control characters or bytes that are "
            "not UTF-8; rename it"
        )
    if not item.path.isprintable() and _BAD_IN_PATH.search(item.path):
        return (
            f"the path {item.path!r} has a NUL or bytes that are not UTF-8; "
            "rename the file"
        )
    if item.start is not None or item.stop is not None:
        start = 0.0 if item.start is None else item.start
        stop = math.inf if item.stop is None else item.stop
        # Segment lists contain parts of zero length, which fail one by one.
        if not 0 <= start <= stop or start == math.inf:
            return (
                f"the part from {item.start} s to {item.stop} s is empty; "
                "correct its start and stop"
            )
    for text in (item.speaker, item.text, *item.extra.values()):
        if isinstance(text, str) and not _is_unicode(text):
            return f"{text[:80]!r} is not valid Unicode; correct it"
    return ""


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def strip_suffix(path: str) -> str:
    """Remove the suffix of a path's name: ``a.b/c.d.wav`` -> ``a.b/c.d``."""
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") + 1 else path
