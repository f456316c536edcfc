"""Defines an item of a corpus: an audio file or a segment of one."""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["Item", "Value", "problem_of", "strip_suffix"]

Value = str | int | float | bool | None

_NOTHING: Mapping[str, Value] = MappingProxyType({})
# Control characters, line and paragraph separators, and the lone surrogates
# that Python makes of a file name's undecodable bytes.
_BAD_IN_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BAD_IN_PATH = re.compile("[\x00\ud800-\udfff]")


class Item(NamedTuple):
    """An audio file or a segment of one, with an id.

    Arguments
    ---------
    id : str
        Unique in the corpus; not empty and without control characters.
    path : str
        Path of the audio file, absolute.
    speaker : str, optional
        The speaker.
    text : str, optional
        The transcript.
    start : float, optional
        Start of the segment in seconds; the file's start by default.
    stop : float, optional
        End of the segment in seconds; the file's end by default.
    extra : mapping
        Other columns: str, int, float, bool or None by name.

    Example
    -------
    >>> Item("a", "/data/a.wav", speaker="84").speaker
    '84'
    """

    id: str
    path: str
    speaker: str | None = None
    text: str | None = None
    start: float | None = None
    stop: float | None = None
    extra: Mapping[str, Value] = _NOTHING


def problem_of(item: Item) -> str:
    """Error message for a damaged item; empty if there is none.

    The file is not opened.

    Example
    -------
    >>> problem_of(Item("", "/data/a.wav"))
    'the id is empty; give it one'
    """
    if not item.id or item.id.isspace():
        return "the id is empty; give it one"
    # Most are printable, and this check is faster.
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
        # A zero-length segment is a failure of the item alone.
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
    """A path without its suffix, for an id.

    Example
    -------
    >>> strip_suffix("a.b/c.d.wav"), strip_suffix("a.b/c")
    ('a.b/c.d', 'a.b/c')
    """
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") + 1 else path
