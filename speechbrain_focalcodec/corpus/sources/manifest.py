"""Reads manifests: SpeechBrain's JSON and CSV, JSON lines, other tables."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.corpus.sources.data_root import DataRoot
from speechbrain_focalcodec.corpus.sources.entries import (
    ID_KEYS,
    PATH_KEYS,
    Entries,
)
from speechbrain_focalcodec.corpus.sources.item import Item
from speechbrain_focalcodec.corpus.sources.json_stream import iter_object
from speechbrain_focalcodec.corpus.sources.lines import read_lines
from speechbrain_focalcodec.corpus.sources.source import Source
from speechbrain_focalcodec.errors import DataError

__all__ = ["CsvSource", "JsonSource"]


class _Manifest(Source):
    """A file of entries, each with the path of its audio."""

    def __init__(
        self, path: str | Path, data_root: str | Path | None = None
    ) -> None:
        super().__init__(
            path, Path(path).parent if data_root is None else data_root
        )
        self.data_root = data_root

    def _entries(self, braces: bool) -> Entries:
        root = DataRoot(self.data_root, braces)
        return Entries(self.absolute, root.in_path, root.in_text)

    def _item(
        self,
        entries: Entries,
        entry: Mapping[str, Any],
        line: int,
        item_id: str | None = None,
    ) -> Item:
        try:
            return entries.item(entry, item_id)
        except ValueError as error:
            raise DataError(f"{self.place(line, item_id)}: {error}") from error


class JsonSource(_Manifest):
    """A SpeechBrain JSON manifest, or JSON lines as NeMo has them.

    The first maps ids to entries, and its strings are format strings, as in
    SpeechBrain; the second has one entry per line. Entries are read one by
    one, never all at once.

    Arguments
    ---------
    path : str or Path
        The manifest.
    data_root : str or Path, optional
        Replaces ``{data_root}`` and ``$data_root``; relative paths start from
        it. The manifest's folder by default for relative paths.

    Example
    -------
    >>> path = getfixture("tmp_path") / "dev.json"
    >>> _ = path.write_text('{"u1": {"wav": "a.wav", "spk_id": "anna"}}')
    >>> [(item.id, item.speaker) for item in JsonSource(path)]
    [('u1', 'anna')]
    """

    kind = "json"
    empty = "has no entries"

    def scan(self) -> Iterator[tuple[int, Item]]:
        """Yield an item per entry."""
        if self._has_lines():
            yield from self._scan_lines()
            return
        entries = self._entries(braces=True)
        for item_id, entry in iter_object(self.path):
            yield 0, self._item(entries, entry, 0, item_id)

    def _has_lines(self) -> bool:
        """Whether the first line is an entry with a path."""
        if self.path.suffix.lower() != ".json":
            return True
        try:
            with open(self.path, "rb") as stream:
                entry = json.loads(stream.readline(2**20))
        except (OSError, ValueError, RecursionError):
            return False  # the error is raised when it is read
        return isinstance(entry, dict) and any(
            isinstance(entry.get(key), str) for key in PATH_KEYS
        )

    def _scan_lines(self) -> Iterator[tuple[int, Item]]:
        entries = self._entries(braces=False)
        for number, line in read_lines(self.path):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{self.place(number)}: is not JSON ({error}); correct it"
                ) from error
            if not isinstance(entry, dict):
                raise DataError(
                    f"{self.place(number)}: is not an object; write "
                    '{"audio_filepath": ...}'
                )
            yield number, self._item(entries, entry, number)


class CsvSource(_Manifest):
    """A SpeechBrain CSV manifest, or another table with a header.

    ``.tsv`` has tabs and no quotes. All columns are text.

    Arguments
    ---------
    path : str or Path
        The manifest.
    data_root : str or Path, optional
        Replaces ``{data_root}`` and ``$data_root``; relative paths start from
        it. The manifest's folder by default for relative paths.

    Example
    -------
    >>> path = getfixture("tmp_path") / "dev.csv"
    >>> _ = path.write_text("ID,wav,spk_id\\nu1,a.wav,anna\\n")
    >>> [(item.id, item.speaker) for item in CsvSource(path)]
    [('u1', 'anna')]
    """

    kind = "csv"
    empty = "has no rows; the first line is the header"

    def scan(self) -> Iterator[tuple[int, Item]]:
        """Yield an item per row."""
        entries = self._entries(braces=False)
        header: list[str] = []
        for line, row in self._rows():
            if not header:
                header = self._header(row)
                self._check(header, entries)
                continue
            if not any(row):
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{self.place(line)}: has {len(row)} cells, the header "
                    f"{len(header)}; quote cells that hold separators"
                )
            entry = {
                name: cell or None
                for name, cell in zip(header, row, strict=True)
            }
            yield line, self._item(entries, entry, line)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        tabs = self.path.suffix.lower() == ".tsv"
        lines = (line for _, line in read_lines(self.path))
        # Strict: an open quote would hide the rows after it.
        reader = csv.reader(
            lines,
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            skipinitialspace=not tabs,
            strict=True,
        )
        line = 1
        try:
            for row in reader:
                yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{self.place(line)}: is not CSV ({error}); quote cells "
                "that hold separators or quotes, and double the quotes in "
                "them"
            ) from error

    def _header(self, row: list[str]) -> list[str]:
        names = [
            name.strip() or f"column_{index}"
            for index, name in enumerate(row, 1)
        ]
        for name in names:
            if names.count(name) > 1:
                raise DataError(
                    f"{self.place(1)}: has two columns {name!r}; rename one"
                )
        return names

    def _check(self, header: list[str], entries: Entries) -> None:
        try:
            roles = entries.roles(tuple(header))
        except ValueError as error:
            raise DataError(f"{self.place(1)}: {error}") from error
        if roles.path is None:
            raise DataError(
                f"{self.place(1)}: is not a header with a column of paths "
                f"(one of {', '.join(PATH_KEYS)}; ids are in "
                f"{', '.join(ID_KEYS)}); name the columns"
            )
