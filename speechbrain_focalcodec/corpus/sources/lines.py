"""Reading text files line by line, with the line's number in errors."""

from collections.abc import Iterator
from pathlib import Path

from speechbrain_focalcodec.errors import DataError

__all__ = ["read_lines"]

MAX_LINE = 2**24  # bytes


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers, from 1.

    Arguments
    ---------
    path : str or Path
        The file; a byte order mark is left out.

    Yields
    ------
    number : int
        Number of the line.
    line : str
        The line with its end, which is ``\\n`` even where the file has
        ``\\r\\n``.

    Raises
    ------
    DataError
        If the file cannot be read, is not UTF-8 or has absurdly long lines.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.txt"
    >>> _ = path.write_bytes(b"one\\r\\ntwo")
    >>> list(read_lines(path))
    [(1, 'one\\n'), (2, 'two')]
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
