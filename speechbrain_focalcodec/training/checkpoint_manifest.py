"""The manifest of a checkpoint: what its files must be, to tell damage."""

import json
from collections.abc import Iterable
from pathlib import Path

from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.utils.files import sha256_of

__all__ = ["MANIFEST", "check_manifest", "write_manifest"]

MANIFEST = "MANIFEST.json"


def write_manifest(folder: str | Path) -> None:
    """Note size and SHA-256 of a folder's files, in the folder.

    Arguments
    ---------
    folder : str or Path
        A checkpoint that is complete but for this.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "model.ckpt").write_bytes(b"weights")
    >>> write_manifest(folder)
    >>> check_manifest(folder)
    >>> _ = (folder / "model.ckpt").write_bytes(b"wei")
    >>> check_manifest(folder)
    Traceback (most recent call last):
    speechbrain_focalcodec.errors.CheckpointError: ...
    """
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(Path(folder).iterdir())
        if path.name != MANIFEST
    }
    text = json.dumps({"files": files}, indent=2) + "\n"
    (Path(folder) / MANIFEST).write_text(text, encoding="utf-8")


def check_manifest(
    folder: str | Path, names: Iterable[str] | None = None
) -> None:
    """Compare a folder's files with its manifest.

    Arguments
    ---------
    folder : str or Path
        A folder with a manifest.
    names : iterable of str, optional
        Check these files alone; all that the manifest lists by default.

    Raises
    ------
    CheckpointError
        Names the first file that is missing or not what it was, which may be
        the manifest.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> write_manifest(folder)
    >>> check_manifest(folder)
    """
    path = Path(folder) / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {
            name: (int(files[name]["size"]), str(files[name]["sha256"]))
            for name in (files if names is None else names)
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error!r}") from None
    for name, (size, digest) in expected.items():
        path = Path(folder) / name
        try:
            if path.stat().st_size != size:
                raise CheckpointError(
                    f"{path}: damaged: {path.stat().st_size} bytes long, "
                    f"not {size}"
                )
            if sha256_of(path) != digest:
                raise CheckpointError(
                    f"{path}: damaged: its content is not what was written"
                )
        except FileNotFoundError:
            raise CheckpointError(f"{path}: missing") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
