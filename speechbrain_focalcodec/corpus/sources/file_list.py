"""A list of audio files, one path a line."""

from collections.abc import Iterator

from speechbrain_focalcodec.corpus.sources.item import Item, strip_suffix
from speechbrain_focalcodec.corpus.sources.lines import read_lines
from speechbrain_focalcodec.corpus.sources.source import Source
from speechbrain_focalcodec.errors import DataError

__all__ = ["ListSource"]


class ListSource(Source):
    """The files that a text file names, one path a line.

    A relative path starts from the list's folder (or the data root). The id
    is the path as it is written, without its suffix; a line ``id<TAB>path``
    gives another one. Blank lines are left out, and so are lines that begin
    with ``#``.

    Example
    -------
    >>> path = getfixture("tmp_path") / "files.txt"
    >>> _ = path.write_text("a/one.wav\\nzwei\\ta/two.wav\\n# three")
    >>> [item.id for item in ListSource(path, path.parent)]
    ['a/one', 'zwei']
    """

    kind = "list"
    empty = "names no files; write one path a line"

    def scan(self) -> Iterator[tuple[int, Item]]:
        """Yield an item a line."""
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
