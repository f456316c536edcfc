"""Replaces `{data_root}` and `$data_root` in manifests."""

import os
import re
from pathlib import Path

__all__ = ["DataRoot"]

_BRACES = re.compile(r"\{\{|\}\}|\{(\w+)\}")
_DOLLAR = re.compile(r"\$\{?(\w+)\}?")
_NAME = "data_root"


class DataRoot:
    """Replaces the placeholders of a manifest's data root.

    Arguments
    ---------
    folder : str or Path, optional
        The data root; if None, a path with a placeholder is an error.
    braces : bool
        Whether strings are format strings, as in SpeechBrain's JSON manifests:
        ``{{`` stands for ``{``.
    """

    def __init__(
        self, folder: str | Path | None = None, braces: bool = False
    ) -> None:
        self.folder = None if folder is None else os.path.abspath(folder)
        self.braces = braces

    def in_path(self, path: str) -> str:
        """Replace the placeholder in a path.

        Raises ValueError if the folder is not known or other placeholders
        remain.
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
        """Replace it in any other string; other placeholders stay."""
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
