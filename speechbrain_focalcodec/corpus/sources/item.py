"""One item of a corpus: an audio file, or a part of one, and its facts."""

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
    """What is to be tokenised under one id.

    Arguments
    ---------
    id : str
        Unique in the corpus; not empty and without control characters.
    path : str
        Path of the audio file, absolute.
    speaker : str, optional
        Who speaks.
    text : str, optional
        What is said.
    start : float, optional
        Where the item begins in the file, in seconds; at its start by
        default.
    stop : float, optional
        Where it ends, in seconds; at the file's end by default.
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
    """What is wrong with an item, and what to do about it.

    Arguments
    ---------
    item : Item
        The item; its file is not looked at.

    Returns
    -------
    str
        For a message; empty when all is fine.

    Example
    -------
    >>> problem_of(Item("", "/data/a.wav"))
    'the id is empty; give it one'
    """
    if not item.id or item.id.isspace():
        return "the id is empty; give it one"
    # Most are printable, which is quicker to see.
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
        # An empty part is the item's failure: lists of segments that were
        # made by a program have some.
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
    """A path without the suffix of its name: an id made of it.

    Arguments
    ---------
    path : str
        The path.

    Returns
    -------
    str
        The path up to the last dot of its name.

    Example
    -------
    >>> strip_suffix("a.b/c.d.wav"), strip_suffix("a.b/c")
    ('a.b/c.d', 'a.b/c')
    """
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") + 1 else path
