"""Walks folder trees of audio files of any size."""

import logging
import os
from collections.abc import Collection, Iterator
from functools import lru_cache

from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
from speechbrain_focalcodec.errors import DataError

__all__ = ["audio_tree"]

logger = logging.getLogger(__name__)


def audio_tree(
    base: str, suffixes: Collection[str] = AUDIO_SUFFIXES
) -> Iterator[tuple[str, str]]:
    """Yield the audio files below a folder, as (folder, name).

    Unlike :func:`~speechbrain_focalcodec.audio.files.find_audio_files` it is
    lazy, for folders of millions of files, and skips devices and pipes with a
    line in the log. Hidden files, hidden folders and linked folders are skipped
    too. Folders come in sorted order, a folder before its subfolders; the files
    of a folder come in no order. Raises DataError if a folder cannot be listed.
    """
    suffixes = frozenset(suffixes)
    waiting = [base]
    while waiting:
        folder = waiting.pop()
        prefix = folder.removesuffix("/") + "/"
        folders = []
        for is_folder, name in _visible(folder, suffixes):
            if is_folder:
                folders.append(prefix + name)
            else:
                yield folder, name
        waiting += sorted(folders, reverse=True)


def _visible(
    folder: str, suffixes: frozenset[str]
) -> Iterator[tuple[bool, str]]:
    """Yield the folders and audio files in a folder, as (is_folder, name)."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield True, name
                    continue
                if os.path.splitext(name)[1].lower() not in suffixes:
                    continue
                if entry.is_symlink():
                    # A dangling or circular link is a bad file.
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
    """Log a line once, even if a tree is walked twice."""
    logger.warning(message)
