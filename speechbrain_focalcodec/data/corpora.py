"""Preparation of several corpora below one data folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.data.an4 import prepare_an4
from speechbrain_focalcodec.data.folder import prepare_folder
from speechbrain_focalcodec.data.librilight import prepare_librilight
from speechbrain_focalcodec.data.librispeech import prepare_librispeech
from speechbrain_focalcodec.data.libritts import prepare_libritts
from speechbrain_focalcodec.errors import ConfigError

__all__ = ["CORPORA", "prepare_corpora"]

#: How each corpus is prepared.
CORPORA: dict[str, Callable[..., dict[str, Path]]] = {
    "AN4": prepare_an4,
    "Folder": prepare_folder,
    "LibriLight": prepare_librilight,
    "LibriSpeech": prepare_librispeech,
    "LibriTTS": prepare_libritts,
}


def prepare_corpora(
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str],
    corpora: Mapping[str, Sequence[str]],
    **options: Any,
) -> dict[str, Path]:
    """Write a manifest, ``save_folder/<split>.json``, for each split.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds all corpora, each in its own folder. The
        manifests' paths are relative to it. It is never written to.
    save_folder : str or Path
        Where the manifests go; it must lie outside the data folder.
    splits : sequence of str
        Which splits.
    corpora : mapping
        Splits by corpus: which corpus each split is of.
    **options : dict
        More arguments of all preparations.

    Returns
    -------
    dict
        Path of the manifest for each split.

    Raises
    ------
    ConfigError
        If a corpus is unknown, or a split is of none or of several.
    DataError
        As the preparations do.

    Example
    -------
    >>> prepare_corpora("data", "save", ["dev"], {"LibriSpeech": ["test"]})
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.ConfigError: corpora: the split dev is of ...
    """
    unknown = set(corpora) - set(CORPORA)
    if unknown:
        raise ConfigError(
            f"corpora: {', '.join(sorted(unknown))} is none of "
            f"{', '.join(CORPORA)}"
        )
    owners: dict[str, list[str]] = {name: [] for name in corpora}
    for split in splits:
        found = [name for name, own in corpora.items() if split in own]
        if len(found) != 1:
            raise ConfigError(
                f"corpora: the split {split} is of "
                f"{' and '.join(found) or 'none'}; name one corpus for each "
                "of the splits"
            )
        owners[found[0]].append(split)
    paths: dict[str, Path] = {}
    for name, own in owners.items():
        if own:
            paths |= CORPORA[name](data_folder, save_folder, own, **options)
    return paths
