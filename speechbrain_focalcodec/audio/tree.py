"""Walks folder trees of audio files of any size."""

import logging
import os
from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
from speechbrain_focalcodec.errors import DataError

__all__ = ["audio_folders"]

logger = logging.getLogger(__name__)


def audio_folders(
    base: str,
    suffixes: Collection[str] = AUDIO_SUFFIXES,
    depth: int | None = None,
) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield the folders below `base` that hold audio, and their files' names.

    Lazy, for folders of millions of files. Folders are sorted, a folder before
    its subfolders; the names of a folder have no order and must be read before
    the next folder. Hidden files and folders are skipped, devices and pipes too
    with a line in the log. With `depth` only folders that many levels below
    `base` are yielded, and linked folders are followed; by default all levels,
    without linked folders. Raises DataError if a folder cannot be listed.
    """
    files = _walk(base, frozenset(suffixes), depth)
    for folder, group in groupby(files, itemgetter(0)):
        yield folder, (name for _, name in group)


def _walk(
    base: str, suffixes: frozenset[str], depth: int | None
) -> Iterator[tuple[str, str]]:
    """Yield folder and name of each audio file."""
    waiting = [(base, 0)]
    while waiting:
        folder, level = waiting.pop()
        prefix = folder.removesuffix("/") + "/"
        folders = []
        for is_folder, name in _visible(folder, suffixes, depth is not None):
            if is_folder:
                folders.append(prefix + name)
            elif depth is None or level == depth:
                yield folder, name
        if depth is None or level < depth:
            folders.sort(reverse=True)
            waiting += [(inner, level + 1) for inner in folders]


def _visible(
    folder: str, suffixes: frozenset[str], follow_links: bool
) -> Iterator[tuple[bool, str]]:
    """Yield the folders and audio files in a folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=follow_links):
                    yield True, name
                    continue
                if os.path.splitext(name)[1].lower() not in suffixes:
                    continue
                if entry.is_symlink():
                    # A broken link is reported as a bad file.
                    if not os.path.isdir(entry.path):
                        yield False, name
                elif entry.is_file():
                    yield False, name
                else:
                    _warn_once(f"{entry.path}: is no file; left out")
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot be listed "
            f"({error.strerror}); check its permissions"
        ) from error


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    """Log a line once, even if the tree is walked twice."""
    logger.warning(message)
