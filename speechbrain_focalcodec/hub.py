"""Fetching models from the Hugging Face hub: pinned and checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.file_hash import sha256_of

__all__ = ["RELEASES", "Release", "fetch", "is_repository", "offline_message"]

# What a model's folder holds.
MODEL_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Release:
    """What is known of a published model.

    Arguments
    ---------
    revision : str, optional
        Commit to fetch.
    sha256 : str, optional
        Of `model.safetensors` at that commit.

    Example
    -------
    >>> Release().revision is None
    True
    """

    revision: str | None = None
    sha256: str | None = None


# The causal releases' commits are not known yet: the main branch is taken.
RELEASES: dict[str, Release] = {
    "lucadellalib/focalcodec_50hz": Release(
        "d6d6d9524e52155c85193c2c3b8da1cf8842f019",
        "2700a916ca8d1c11a899995ef8d451ee53a481486650c4b78cd96feff9ac77f0",
    ),
    "lucadellalib/focalcodec_25hz": Release(
        "581aa401901b4985fbbdd3569d80a5a191740c1f",
        "07a5ca4b92fb1fdc0499e761df6373d5b0811b8b950335fc40bcf6dc4f300441",
    ),
    "lucadellalib/focalcodec_12_5hz": Release(
        "96ddced5e284f109d9022a65d1062fcd92dc33eb",
        "5362c33ed75801d9bced7e8573f8eece674592ea3c3156451a85f4b924b1c1e5",
    ),
    "lucadellalib/focalcodec_50hz_2k_causal": Release(),
    "lucadellalib/focalcodec_50hz_4k_causal": Release(),
    "lucadellalib/focalcodec_50hz_65k_causal": Release(),
}


def is_repository(source: str) -> bool:
    """Whether a string has the form of a hub repository, owner/name.

    Arguments
    ---------
    source : str
        What the user gave.

    Returns
    -------
    bool
        True for ``owner/name``.

    Example
    -------
    >>> is_repository("lucadellalib/focalcodec_50hz"), is_repository("a/b/c")
    (True, False)
    """
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source))


def fetch(
    repository: str,
    revision: str | None = None,
    names: Sequence[str | Sequence[str]] = MODEL_FILES,
) -> Path:
    """Download a model, or find it in the local cache.

    Arguments
    ---------
    repository : str
        ``owner/name``.
    revision : str, optional
        Commit, tag or branch; a release's pinned commit by default, and the
        main branch of other repositories.
    names : sequence of str
        Files to fetch, by default `config.json` and `model.safetensors`. Of
        several names given for one, the first that is there is taken.

    Returns
    -------
    Path
        Folder with the files.

    Raises
    ------
    CheckpointError
        If the hub cannot be reached and the cache has no copy, if there is
        no such repository, revision or file, or if a release's weights do
        not have the known SHA-256.
    """
    release = RELEASES.get(repository, Release())
    wanted = revision or release.revision
    commit = wanted
    paths: list[Path] = []
    for choice in names:
        choice = (choice,) if isinstance(choice, str) else tuple(choice)
        paths.append(_fetch_first(repository, wanted, commit, choice))
        # All files of one commit, when a branch moves in between.
        commit = paths[0].parent.name
    if release.sha256 is not None and wanted == release.revision:
        _check_sha256(paths[-1], release.sha256)
    return paths[0].parent


def _fetch_first(
    repository: str,
    wanted: str | None,
    commit: str | None,
    choice: tuple[str, ...],
) -> Path:
    """Fetch the first of some files that a commit has.

    `wanted` is what the user asked for, to be named in errors.
    """
    import huggingface_hub
    from huggingface_hub.utils import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repository} (revision {wanted or 'main'})"
    unreachable: CheckpointError | None = None
    for name in choice:
        at = f"{where}: {name}"
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    repository, name, revision=commit
                )
            )
        except LocalEntryNotFoundError as error:
            # Another of the files may be in the cache.
            reason = str(error.__cause__ or error).partition("\n")[0]
            unreachable = unreachable or CheckpointError(
                f"{at}: the hub cannot be reached ({reason}) and the local "
                "cache has no copy; connect once, or give a local folder"
            )
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            kind = "repository"
            if isinstance(error, RevisionNotFoundError):
                kind = "revision"
            raise CheckpointError(
                f"{at}: the hub has no such {kind}, or it is private"
            ) from None
        except EntryNotFoundError:
            continue
        # Versions of the hub's client differ in the HTTP library whose errors
        # they let through.
        except Exception as error:
            raise CheckpointError(f"{at}: download failed: {error}") from error
    if unreachable is not None:
        raise unreachable
    hint = ""
    if len(choice) == 1 and choice[0] in MODEL_FILES:
        hint = (
            "; is it a FocalCodec model, or a WavLM with safetensors weights?"
        )
    raise CheckpointError(
        f"{where}: {' or '.join(choice)}: not in the repository{hint}"
    )


def _check_sha256(path: Path, expected: str) -> None:
    """Raise unless a file has the known digest."""
    found = sha256_of(path)
    if found != expected:
        # The cache's entry is a link: the file behind it has to go.
        raise CheckpointError(
            f"{path}: SHA-256 is {found}, the release has "
            f"{expected}; delete {path.resolve()} and fetch it again"
        )


def offline_message(name: str, bundled: Sequence[str] = ()) -> str:
    """Why an offline model does not stream, and which models do.

    Arguments
    ---------
    name : str
        The model's name.
    bundled : sequence of str
        Models to be named beside the published ones.

    Returns
    -------
    str
        For an error.

    Example
    -------
    >>> "lucadellalib/focalcodec_50hz_4k_causal" in offline_message("mine")
    True
    """
    causal = [model for model in (*bundled, *RELEASES) if "causal" in model]
    return (
        f"{name} is an offline model: it sees the whole utterance and cannot "
        f"stream; use a causal one, such as {', '.join(causal)}"
    )
