"""Downloads models from the Hugging Face hub, pinned and checked."""

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

MODEL_FILES = ("config.json", "model.safetensors")
# Timeout for the hub's answer (s), for codecs and tasks.
PATIENCE = 6.0

_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


class HubOptions(TypedDict, total=False):
    """Options of :func:`huggingface_hub.hf_hub_download`.

    Arguments
    ---------
    cache_dir : str or Path, optional
        Folder of the local cache; the client's default if None.
    local_files_only : bool
        Whether to use only the local cache.
    token : str or bool, optional
        Access token of a private repository; that of the login by default.
    """

    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None


@dataclass(frozen=True)
class Release:
    """Pinned commit of a release and SHA-256 of its `model.safetensors`."""

    revision: str | None = None
    sha256: str | None = None


# The commits of the causal releases are not known yet: main is used.
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
    """Whether a string has the form of a hub repository, owner/name."""
    return bool(re.fullmatch(_NAME, source))


def split_file(source: str) -> tuple[str, str] | None:
    """Repository and file name of ``owner/name/file.json``; else None."""
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
        Commit, tag or branch; by default the pinned commit of a release, and
        the main branch of other repositories.
    names : sequence of str or of sequences of str
        Files to fetch. Of alternatives, the first that exists is fetched.
    options : dict, optional
        See :class:`HubOptions`.
    patience : float, optional
        Timeout for the hub's answer (s), after which the local cache is used;
        by default the client's own, which can be minutes.

    Returns
    -------
    Path
        Folder with the files.

    Raises
    ------
    CheckpointError
        If the hub cannot be reached and the cache has no copy, the
        repository, revision or file does not exist, or the weights of a
        release have another SHA-256 than expected.
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
        # All files from one commit, even if the branch moves meanwhile.
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
    """Whether one of some files of a known commit is in the cache."""
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
    """Reason why the hub cannot be reached, or None if it answers.

    Runs in a thread because a host look-up has no timeout.
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
            pass  # the download raises the same error
        except HfHubHTTPError as error:
            # 404 is an answer; a server error is not.
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
    """Whether the hub answers that it has a file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, name, revision=commit)
    try:
        get_hf_file_metadata(url, token=options.get("token"), timeout=PATIENCE)
    except Exception:
        return False
    return True


def pickled_message(path: str | Path, first: str = "") -> str:
    """Error text for pickled weights: how to convert them."""
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

    `wanted` is the requested revision, named in errors; `silence` is the reason
    why the hub cannot be reached.
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
            # An alternative file may be in the cache.
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
        # The HTTP library, and so its errors, depends on the client's version.
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
    """Raise CheckpointError if a file has another SHA-256."""
    found = sha256_of(path)
    if found != expected:
        # The entry in the cache is a link to the file.
        raise CheckpointError(
            f"{path}: SHA-256 is {found}, the release has "
            f"{expected}; delete {path.resolve()} and fetch it again"
        )


def offline_message(name: str, bundled: Sequence[str] = ()) -> str:
    """Message: an offline model cannot stream, and which models can."""
    causal = [model for model in (*bundled, *RELEASES) if "causal" in model]
    return (
        f"{name} is an offline model: it sees the whole utterance and cannot "
        f"stream; use a causal one, such as {', '.join(causal)}"
    )
