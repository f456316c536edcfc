"""Reads a large JSON object entry by entry."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from speechbrain_focalcodec.errors import DataError

__all__ = ["iter_object"]

MAX_ENTRY = 2**24  # characters
_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


def iter_object(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the keys and values of a JSON file's outermost object.

    Memory holds one entry and a block of the file. Repeated keys are yielded
    each time.

    Arguments
    ---------
    path : str or Path
        A UTF-8 file that maps names to objects.

    Yields
    ------
    key : str
        A name.
    value : dict
        Its object.

    Raises
    ------
    DataError
        If the file cannot be read or is something else.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.json"
    >>> _ = path.write_text('{"a": {"b": 1}, "c": {}}')
    >>> list(iter_object(path))
    [('a', {'b': 1}), ('c', {})]
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            yield from _Reader(path, stream).entries()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 ({error.reason}); convert it to UTF-8"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path and "
            "its permissions"
        ) from error


class _Reader:
    def __init__(self, path: str | Path, stream: TextIO) -> None:
        self.path = path
        self.stream = stream
        self.decode = json.JSONDecoder().raw_decode
        self.text = ""
        self.position = 0
        self.place = "at its start"

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self._take("{")
        if self._next() != "}":
            while True:
                key = self._value('"', "a name in quotes")
                self.place = f"at id {key!r}"
                self._take(":")
                value = self._value("{", "an object for each id")
                yield key, value
                self.place = f"after id {key!r}"
                if self._next() != ",":
                    break
                self.position += 1
        self._take("}")
        if self._next():
            raise self._error("it goes on after its end")

    def _more(self) -> bool:
        chunk = self.stream.read(_CHUNK)
        self.text = self.text[self.position :] + chunk
        self.position = 0
        return bool(chunk)

    def _next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._more():
                return ""

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise self._error(f"{character!r} was expected")
        self.position += 1

    def _value(self, first: str, what: str) -> Any:
        if self._next() != first:
            raise self._error(f"{what} was expected")
        while True:
            try:
                value, self.position = self.decode(self.text, self.position)
                return value
            except (ValueError, RecursionError) as error:
                # It may only have been cut at the end of a block.
                full = len(self.text) - self.position > MAX_ENTRY
                if full or not self._more():
                    reason = getattr(error, "msg", str(error))
                    raise self._error(reason) from error

    def _error(self, reason: str) -> DataError:
        return DataError(
            f"{self.path}: is not a manifest that maps ids to entries "
            f"({self.place}: {reason}); correct it or make it anew"
        )
