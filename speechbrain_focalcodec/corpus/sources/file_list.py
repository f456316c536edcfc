"""Items of a list of audio files, and reading text files line by line."""

from collections.abc import Iterator
from pathlib import Path

from speechbrain_focalcodec.corpus.sources.item import (
    Item,
    Source,
    strip_suffix,
)
from speechbrain_focalcodec.errors import DataError

__all__ = ["ListSource", "read_lines"]

MAX_LINE = 2**24  # bytes


class ListSource(Source):
    """A text file with one path per line, or ``id<TAB>path``.

    Without an id it is the path as written, without its suffix. Blank lines
    and lines that begin with ``#`` are left out.
    """

    kind = "list"
    empty = "names no files; write one path a line"

    def scan(self) -> Iterator[tuple[int, Item]]:
        for number, line in read_lines(self.path):
            if not line.strip() or line.startswith("#"):
                continue
            item_id, tab, path = line.partition("\t")
            if not tab:
                item_id, path = strip_suffix(line.strip()), line
            path = path.strip()
            if not path:
                raise DataError(
                    f"{self.place(number)}: has no path after the tab; add "
                    "it or remove the line"
                )
            yield number, Item(item_id.strip(), self.absolute(path))


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers, from 1.

    Lines keep their end, as ``\\n``. A byte order mark is removed. Raises
    DataError if the file cannot be read, is not UTF-8 or has lines of 16 MiB.
    """
    number = 0
    try:
        with open(path, "rb") as stream:
            while line := stream.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise DataError(
                        f"{path}, line {number}: is too long for a line of "
                        "text; check that this is the right file"
                    )
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.endswith(b"\r\n"):
                    line = line[:-2] + b"\n"
                yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: is not UTF-8 ({error.reason}); convert "
            "the file to UTF-8"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path and "
            "its permissions"
        ) from error
