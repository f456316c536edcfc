"""Prepares corpora: writes a JSON manifest for each split.

The corpora are the entries of
:data:`~speechbrain_focalcodec.corpus.sources.corpora.CORPORA`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.corpus.sources.corpora import CORPORA, Corpus
from speechbrain_focalcodec.data.manifest import split_manifest, write_manifest
from speechbrain_focalcodec.data.scan import find_root, scan_split
from speechbrain_focalcodec.errors import ConfigError, DataError

__all__ = [
    "Preparation",
    "prepare_an4",
    "prepare_corpora",
    "prepare_folder",
    "prepare_librilight",
    "prepare_librispeech",
    "prepare_libritts",
]


class Preparation:
    """Writes the manifests of a corpus; ``prepare_librispeech`` is one.

    Only headers are read, and files that an earlier run has read are not read
    again. Audio is not converted: training resamples it.

    Arguments
    ---------
    corpus : Corpus
        The corpus.

    Example
    -------
    >>> import numpy, soundfile
    >>> tmp = getfixture("tmp_path")
    >>> chapter = tmp / "LibriSpeech" / "dev-clean" / "84" / "121123"
    >>> chapter.mkdir(parents=True)
    >>> audio = chapter / "84-121123-0000.flac"
    >>> soundfile.write(audio, numpy.zeros(8000), 16000)
    >>> prepare_librispeech(
    ...     tmp / "LibriSpeech", tmp / "save", ["dev-clean"]
    ... )["dev-clean"].name
    'dev-clean.json'
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __call__(
        self,
        data_folder: str | Path,
        save_folder: str | Path,
        splits: Sequence[str] = (),
        num_workers: int | None = None,
        skip_prep: bool = False,
        max_failures: float | None = None,
        decode: bool = False,
        **layout: Any,
    ) -> dict[str, Path]:
        """Write a manifest, ``save_folder/<split>.json``, for each split.

        Arguments
        ---------
        data_folder : str or Path
            The folder that holds the splits, or its parent. The manifests'
            paths are relative to it. It is never written to.
        save_folder : str or Path
            Folder of the manifests; it must lie outside the data folder.
        splits : sequence of str
            Names of the splits' folders; by default those of the corpus.
        num_workers : int, optional
            Number of threads; by default a few more than the machine has
            cores.
        skip_prep : bool
            Only return the paths (the manifests exist already).
        max_failures : float, optional
            Share of a split's files that may be bad. They are skipped and
            listed in ``SPLIT.skipped.tsv``. By default 0.01 for folders and
            0 for other corpora.
        decode : bool
            Decode each file to its end, to find damage that headers hide.
        **layout : dict
            Fields of :class:`Corpus` to change: for folders, `speakers`
            (whether the first folder below a split is the speaker) and
            `suffixes` of the audio files.

        Returns
        -------
        dict
            Path of the manifest for each split.

        Raises
        ------
        DataError
            If the data folder or a split is missing, a split is empty, there
            are too many bad files, or the save folder lies in the data folder.
        """
        corpus = dataclasses.replace(self.corpus, **layout)
        save_folder = Path(save_folder)
        splits = [splits] if isinstance(splits, str) else list(splits)
        splits = splits or list(corpus.splits)
        if not splits:
            raise ValueError(f"name the splits of {corpus.name}")
        paths = {split: split_manifest(save_folder, split) for split in splits}
        if skip_prep:
            return paths
        data_folder = Path(data_folder)
        if not data_folder.is_dir():
            raise DataError(
                f"the data folder {data_folder} does not exist: give the "
                f"folder that holds the splits of {corpus.name}"
            )
        if save_folder.resolve().is_relative_to(data_folder.resolve()):
            raise DataError(
                f"the save folder {save_folder} lies in the data folder "
                f"{data_folder}, which is never written to: choose another one"
            )
        if max_failures is None:
            max_failures = corpus.max_failures
        root = find_root(corpus, data_folder, splits)
        for split in splits:
            entries = scan_split(
                corpus,
                data_folder,
                root,
                split,
                save_folder / f"{split}.headers.jsonl",
                num_workers,
                max_failures,
                decode,
            )
            write_manifest(paths[split], entries)
        return paths


prepare_an4 = Preparation(CORPORA["AN4"])
prepare_folder = Preparation(CORPORA["Folder"])
prepare_librilight = Preparation(CORPORA["LibriLight"])
prepare_librispeech = Preparation(CORPORA["LibriSpeech"])
prepare_libritts = Preparation(CORPORA["LibriTTS"])


def prepare_corpora(
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str],
    corpora: Mapping[str, Sequence[str]],
    **options: Any,
) -> dict[str, Path]:
    """Prepare splits of several corpora below one data folder.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds all corpora, each in its own folder.
    save_folder : str or Path
        Folder of the manifests; it must lie outside the data folder.
    splits : sequence of str
        Names of the splits.
    corpora : mapping
        Splits of each corpus, by its name.
    **options : dict
        More arguments of :class:`Preparation`.

    Returns
    -------
    dict
        Path of the manifest for each split.

    Raises
    ------
    ConfigError
        If a corpus is unknown, or a split belongs to none or to several.
    DataError
        As the preparations do.
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
            prepare = Preparation(CORPORA[name])
            paths |= prepare(data_folder, save_folder, own, **options)
    return paths
