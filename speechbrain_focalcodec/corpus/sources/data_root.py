"""Replaces `{data_root}` and `$data_root` in manifests."""

import os
import re
from pathlib import Path

__all__ = ["DataRoot"]

_BRACES = re.compile(r"\{\{|\}\}|\{(\w+)\}")
_DOLLAR = re.compile(r"\$\{?(\w+)\}?")
_NAME = "data_root"


class DataRoot:
    """Replaces the data root in paths and other strings of a manifest.

    Arguments
    ---------
    folder : str or Path, optional
        The folder; without it, a path with a data root is an error.
    braces : bool
        Whether strings are format strings, as in SpeechBrain's JSON
        manifests, with ``{{`` for ``{``.

    Example
    -------
    >>> DataRoot("/data").in_path("{data_root}/a.wav")
    '/data/a.wav'
    >>> DataRoot("/data").in_path("$data_root/a.wav")
    '/data/a.wav'
    >>> DataRoot(braces=True).in_text("{{laughs}}")
    '{laughs}'
    """

    def __init__(
        self, folder: str | Path | None = None, braces: bool = False
    ) -> None:
        self.folder = None if folder is None else os.path.abspath(folder)
        self.braces = braces

    def in_path(self, path: str) -> str:
        """Replace placeholders in a path; a ValueError for unknown ones.

        Example
        -------
        >>> DataRoot().in_path("$data_root/a.wav")
        Traceback (most recent call last):
        ...
        ValueError: the path '$data_root/a.wav' leaves $data_root open; ...
        """
        start = _DOLLAR.match(path)
        if start:
            rest = path[start.end() :]
            path = self._folder(start[1], start[0], path) + rest
        if self.braces:
            return _BRACES.sub(
                lambda match: (
                    match[0][0]
                    if match[1] is None
                    else self._folder(match[1], match[0], path)
                ),
                path,
            )
        if "{data_root}" in path:
            folder = self._folder(_NAME, "{data_root}", path)
            return path.replace("{data_root}", folder)
        return path

    def in_text(self, text: str) -> str:
        """Replace the data root in another string; the rest stays."""
        if not self.braces or ("{" not in text and "}" not in text):
            return text
        return _BRACES.sub(self._any, text)

    def _any(self, match: re.Match) -> str:
        if match[1] is None:
            return match[0][0]
        return (self.folder or match[0]) if match[1] == _NAME else match[0]

    def _folder(self, name: str, placeholder: str, path: str) -> str:
        if name != _NAME:
            raise ValueError(
                f"the path {path!r} leaves {placeholder} open, and only "
                "data_root is known; put data_root in its place"
            )
        if self.folder is None:
            raise ValueError(
                f"the path {path!r} leaves {placeholder} open; say with "
                "--data-root which folder it stands for"
            )
        return self.folder
