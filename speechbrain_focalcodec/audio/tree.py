"""Walking folder trees of audio files, however large."""

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
    """Yield the audio files below a folder.

    Beside :func:`~speechbrain_focalcodec.audio.files.find_audio_files` this is
    lazy, so that folders of millions of files can be read, and leaves out
    devices and pipes, with a line in the log. Hidden files, hidden folders
    and linked folders are left out too.

    Arguments
    ---------
    base : str
        The folder.
    suffixes : collection of str
        The suffixes wanted, in lower case; audio by default.

    Yields
    ------
    folder : str
        The folder that holds the file, beginning with `base`. Folders come
        in sorted order, a folder before those in it.
    name : str
        The file's name; those of a folder come in no order.

    Raises
    ------
    DataError
        If a folder cannot be listed.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "a").mkdir()
    >>> (folder / "a" / "b.wav").touch()
    >>> [name for _, name in audio_tree(str(folder))]
    ['b.wav']
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
    """Yield the folders and audio files in a folder."""
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
                    # One that leads nowhere, or to itself, is a bad file.
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
    """Log a line, once for a tree that is walked twice."""
    logger.warning(message)
