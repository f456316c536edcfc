"""Fetching models from the Hugging Face hub: pinned and checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TypedDict

from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.utils.files import sha256_of

__all__ = [
    "HubOptions",
    "RELEASES",
    "Release",
    "fetch",
    "is_repository",
    "offline_message",
    "pickled_message",
    "split_file",
]

# What a model's folder holds.
MODEL_FILES = ("config.json", "model.safetensors")
# For codecs and tasks: how long to wait for the hub's answer (s).
PATIENCE = 6.0

_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


class HubOptions(TypedDict, total=False):
    """How to reach the hub, as :func:`huggingface_hub.hf_hub_download` says.

    Arguments
    ---------
    cache_dir : str or Path, optional
        Folder of the local cache; the client's own by default.
    local_files_only : bool
        Whether to use the local cache alone.
    token : str or bool, optional
        For a private repository; the one logged in with by default.

    Example
    -------
    >>> HubOptions(local_files_only=True)
    {'local_files_only': True}
    """

    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None


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
    return bool(re.fullmatch(_NAME, source))


def split_file(source: str) -> tuple[str, str] | None:
    """Repository and name of a configuration on the hub.

    Arguments
    ---------
    source : str
        What the user gave.

    Returns
    -------
    tuple of str or None
        None unless it has the form ``owner/name/file.json``.

    Example
    -------
    >>> split_file("owner/name/config_x.json")
    ('owner/name', 'config_x.json')
    """
    match = re.fullmatch(rf"({_NAME})/([\w-][\w.-]*\.json)", source)
    return (match[1], match[2]) if match else None


def fetch(
    repository: str,
    revision: str | None = None,
    names: Sequence[str | Sequence[str]] = MODEL_FILES,
    options: HubOptions | None = None,
    patience: float | None = None,
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
    options : dict, optional
        See :class:`HubOptions`.
    patience : float, optional
        How long to wait for the hub's answer before the local cache is taken
        (s); as long as the client does by default, which can be minutes.

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
    options = options or {}
    choices = [(name,) if isinstance(name, str) else name for name in names]
    silence = None
    if (
        patience is not None
        and not options.get("local_files_only")
        and not all(
            _is_cached(repository, choice, wanted, options)
            for choice in choices
        )
    ):
        silence = _ask(repository, choices[0][0], wanted, options, patience)
        if silence is not None:
            options = {**options, "local_files_only": True}
    commit = wanted
    paths: list[Path] = []
    for choice in choices:
        paths.append(
            _fetch_first(repository, wanted, commit, choice, options, silence)
        )
        # All files of one commit, when a branch moves in between.
        commit = paths[0].parent.name
    if release.sha256 is not None and wanted == release.revision:
        for path in paths:
            if path.name == MODEL_FILES[1]:
                _check_sha256(path, release.sha256)
    return paths[0].parent


def _is_cached(
    repository: str,
    choice: Sequence[str],
    wanted: str | None,
    options: HubOptions,
) -> bool:
    """Whether a file of a known commit is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return bool(re.fullmatch("[0-9a-f]{40}", wanted or "")) and any(
        isinstance(
            try_to_load_from_cache(
                repository, name, options.get("cache_dir"), wanted
            ),
            str,
        )
        for name in choice
    )


def _ask(
    repository: str,
    name: str,
    wanted: str | None,
    options: HubOptions,
    patience: float,
) -> str | None:
    """Why the hub cannot be reached; None when it answers.

    In a thread, as looking up a host cannot be given a time.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    reasons: list[str | None] = []

    def ask() -> None:
        reason = None
        try:
            get_hf_file_metadata(
                hf_hub_url(repository, name, revision=wanted),
                token=options.get("token"),
                timeout=patience,
            )
        except HFValidationError:
            pass  # the download says what is wrong
        except HfHubHTTPError as error:
            # What is not there is an answer, unlike a server that fails.
            if error.response is None or error.response.status_code >= 500:
                reason = str(error)
        except Exception as error:
            reason = str(error) or type(error).__name__
        reasons.append(reason)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return reasons[0] if reasons else f"no answer in {patience:g} seconds"


def _exists(
    repository: str, name: str, commit: str | None, options: HubOptions
) -> bool:
    """Whether the hub has a file, as far as it answers."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, name, revision=commit)
    try:
        get_hf_file_metadata(url, token=options.get("token"), timeout=PATIENCE)
    except Exception:
        return False
    return True


def pickled_message(path: str | Path, first: str = "") -> str:
    """What to do with pickled weights, which this package does not read.

    Arguments
    ---------
    path : str or Path
        The file.
    first : str
        What to do before they are converted.

    Returns
    -------
    str
        For an error.

    Example
    -------
    >>> "'a/model.safetensors'" in pickled_message("a/model.pt")
    True
    """
    target = str(Path(path).with_suffix(".safetensors"))
    command = (
        "import torch, safetensors.torch as s; "
        f"w = torch.load({str(path)!r}, 'cpu', weights_only=True); "
        "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, "
        f"{target!r})"
    )
    return (
        f"{path}: pickled weights are not read, as they can run code; if you "
        f'trust them, {first}convert them once: python -c "{command}"'
    )


def _fetch_first(
    repository: str,
    wanted: str | None,
    commit: str | None,
    choice: Sequence[str],
    options: HubOptions,
    silence: str | None,
) -> Path:
    """Fetch the first of some files that a commit has.

    `wanted` is what the user asked for, to be named in errors; `silence` why
    the hub cannot be reached.
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
                    repository, name, revision=commit, **options
                )
            )
        except LocalEntryNotFoundError as error:
            # Another of the files may be in the cache.
            reason = silence or str(error.__cause__ or error)
            if silence is None and options.get("local_files_only"):
                reason = "local_files_only is set"
            reason = reason.partition("\n")[0]
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
    pickled = choice[0].replace(".safetensors", ".pt")
    if pickled != choice[0] and _exists(repository, pickled, commit, options):
        first = "download them with their configuration and "
        hint = f", but {pickled_message(pickled, first)}"
    elif len(choice) == 1 and choice[0] in MODEL_FILES:
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
