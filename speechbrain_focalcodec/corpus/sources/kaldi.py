"""Reads a Kaldi data folder: wav.scp, text, utt2spk and segments."""

import re
from collections.abc import Iterator
from pathlib import Path

from speechbrain_focalcodec.corpus.sources.item import Item
from speechbrain_focalcodec.corpus.sources.lines import read_lines
from speechbrain_focalcodec.corpus.sources.source import Source
from speechbrain_focalcodec.errors import DataError

__all__ = ["KaldiSource"]

_OFFSET = re.compile(r":\d+$")


class KaldiSource(Source):
    """The utterances of a Kaldi data folder.

    Items are the segments of ``segments``, or else the lines of ``wav.scp``.
    ``text`` and ``utt2spk`` are optional. Commands (``sox a.wav |``) are
    refused: nothing in a data file is executed.

    Arguments
    ---------
    path : str or Path
        The folder, or a ``.scp`` file.
    base : str or Path
        The folder that relative paths start from.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "wav.scp").write_text("u1 one.wav\\nu2 two.wav\\n")
    >>> _ = (folder / "utt2spk").write_text("u1 anna\\nu2 otto\\n")
    >>> [item.speaker for item in KaldiSource(folder, folder)]
    ['anna', 'otto']
    """

    kind = "kaldi"
    empty = "has no lines; write `id path`, one a line"

    def __init__(self, path: str | Path, base: str | Path) -> None:
        super().__init__(path, base)
        folder = self.path.is_dir()
        self.scp = self.path / "wav.scp" if folder else self.path
        self.folder = self.scp.parent

    def place(self, line: int, item_id: str | None = None) -> str:
        """The place of an item, for a message."""
        segments = self.folder / "segments"
        path = segments if segments.is_file() else self.scp
        return f"{path}, line {line}"

    def scan(self) -> Iterator[tuple[int, Item]]:
        """Yield an item per segment, or per recording without segments."""
        texts = _Lookup(self.folder / "text")
        speakers = _Lookup(self.folder / "utt2spk")
        segments = self.folder / "segments"
        parts = self._segments(segments) if segments.is_file() else None
        for line, item in parts or self._recordings():
            yield (
                line,
                item._replace(
                    speaker=speakers.pop(item.id), text=texts.pop(item.id)
                ),
            )

    def _recordings(self) -> Iterator[tuple[int, Item]]:
        for number, key, path in _pairs(self.scp):
            problem = _problem_of_path(path)
            if problem:
                raise DataError(f"{self.scp}, line {number}: {problem}")
            yield number, Item(key, self.absolute(path))

    def _segments(self, segments: Path) -> Iterator[tuple[int, Item]]:
        paths: dict[str, str] = {}
        for number, item in self._recordings():
            if paths.setdefault(item.id, item.path) != item.path:
                raise DataError(
                    f"{self.scp}, line {number}: the recording {item.id!r} "
                    f"is there twice, as {paths[item.id]} and {item.path}; "
                    "remove one"
                )
        for number, utt, rest in _pairs(segments):
            try:
                recording, start, stop, *channel = rest.split()
                seconds = float(start), float(stop)
            except ValueError as error:
                raise DataError(
                    f"{segments}, line {number}: is not `utterance recording "
                    "start stop`, the times in seconds; correct it"
                ) from error
            if channel not in ([], ["-1"]):
                raise DataError(
                    f"{segments}, line {number}: names a channel, which is "
                    "not read; write the channels to files of their own"
                )
            if recording not in paths:
                raise DataError(
                    f"{segments}, line {number}: the recording "
                    f"{recording!r} is not in {self.scp}; add it or remove "
                    "the line"
                )
            yield (
                number,
                Item(
                    utt,
                    paths[recording],
                    start=seconds[0],
                    stop=None if seconds[1] == -1 else seconds[1],
                ),
            )


class _Lookup:
    """Values by key from a file that is read only as far as needed.

    Kaldi's files have the same order, so that memory holds few values. Other
    orders and missing keys are allowed.
    """

    def __init__(self, path: Path) -> None:
        self.waiting: dict[str, str] = {}
        self.pairs = _pairs(path, True) if path.is_file() else iter(())

    def pop(self, key: str) -> str | None:
        """The value of a key, once; None if it has none."""
        if key in self.waiting:
            return self.waiting.pop(key) or None
        for _, other, value in self.pairs:
            if other == key:
                return value or None
            self.waiting[other] = value
        return None


def _pairs(
    path: Path, may_be_empty: bool = False
) -> Iterator[tuple[int, str, str]]:
    """Yield line number, first word and the rest of each line."""
    for number, line in read_lines(path):
        key, *rest = line.split(maxsplit=1) or [""]
        if not key:
            continue
        if not rest and not may_be_empty:
            raise DataError(
                f"{path}, line {number}: has nothing after {key!r}; add it "
                "or remove the line"
            )
        yield number, key, rest[0].strip() if rest else ""


def _problem_of_path(path: str) -> str:
    if path.endswith("|") or path.startswith("|"):
        return (
            f"{path!r} is a command, and commands in data files are not "
            "executed; name an audio file (FLAC, MP3, Ogg and others are "
            "read as they are), or write the command's output to one"
        )
    if _OFFSET.search(path):
        return (
            f"{path!r} points into an archive, which is not read; write its "
            "audio to files (wav-copy scp:wav.scp ...) and name these"
        )
    if path == "-":
        return "standard input is not read; name an audio file"
    return ""
