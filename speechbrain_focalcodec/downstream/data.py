"""Datasets of downstream tasks.

Items hold "id", the values that the task needs, and "prepared" (tokens or
features, from a token dataset or computed once) or "sig" (prepared batch by
batch).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from tqdm import tqdm

from speechbrain_focalcodec.data.manifest import read_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.data.splits import TEST_NAME
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.downstream.front_ends import FrontEnd, TokenFrontEnd
from speechbrain_focalcodec.errors import ConfigError, DataError
from speechbrain_focalcodec.utils.lengths import data_and_lengths

__all__ = ["COLUMNS", "prepare_inputs", "split_file", "task_dataset"]

#: Columns of token datasets that have another name than in manifests.
COLUMNS = {"spk_id": "speaker"}


def split_file(split: str) -> str:
    """Name of a split's manifest in the save folder."""
    return TEST_NAME if split == "test" else f"{split}.json"


def task_dataset(
    source: str | Path,
    data_root: str | Path | None,
    front_end: FrontEnd,
    items: Mapping[str, tuple[str, Any]],
    **options: Any,
) -> Any:
    """Make a task's dataset from a manifest or a token dataset.

    Utterances without the columns that the task needs are left out.

    Arguments
    ---------
    source : str or Path
        A manifest, or a folder written by ``focalcodec tokenize``.
    data_root : str or Path, optional
        Data folder that the manifest's paths are relative to.
    front_end : FrontEnd
        The front end; a token dataset needs a
        :class:`~speechbrain_focalcodec.downstream.front_ends.TokenFrontEnd`.
    items : mapping
        For each key of an item: the column and a function of it, or None for
        the column itself; ``{"labels": ("text", encode)}``.
    **options : dict
        Options of :func:`~speechbrain_focalcodec.data.pipeline.make_dataset`.

    Returns
    -------
    DynamicItemDataset or TokenDataset
        The dataset.

    Raises
    ------
    DataError
        If no utterance has the columns, or another codec made the tokens.
    ConfigError
        If the front end takes no tokens.
    """
    source = Path(source)
    dataset: Any
    if source.is_dir():
        columns = {key: COLUMNS.get(c, c) for key, (c, _) in items.items()}
        dataset = _token_dataset(source, front_end)
        missing = set(columns.values()) - set(dataset.rows.keys)
        if missing:
            raise DataError(
                f"{source}: has no column {', '.join(sorted(missing))}; "
                "tokenise a manifest that has it"
            )
        outputs = {"id": "id", "prepared": "tokens"}
    else:
        columns = {key: column for key, (column, _) in items.items()}
        manifest = read_manifest(source)
        complete = {
            utt_id
            for utt_id, entry in manifest.items()
            if all(_has_value(entry.get(c)) for c in columns.values())
        }
        if not complete:
            raise DataError(
                f"{source}: no utterance has {', '.join(columns.values())}"
            )
        dataset = make_dataset(
            source, data_root or "", front_end.sample_rate, **options
        ).filtered_sorted(key_test={"id": complete.__contains__})
        outputs = {"id": "id", "sig": "sig"}
    for key, (_, function) in items.items():
        outputs[key] = columns[key]
        if function is not None:
            # A dynamic item cannot have the name of its column.
            outputs[key] = f"made_{key}"
            dataset.add_dynamic_item(function, columns[key], f"made_{key}")
    if source.is_dir():
        required = set(columns.values())
        dataset = dataset.filtered_sorted(
            key_test={column: _has_value for column in required}
        )
        if not len(dataset):
            raise DataError(f"{source}: no item has {', '.join(required)}")
    dataset.set_output_keys(outputs)
    return dataset


def prepare_inputs(
    dataset: DynamicItemDataset,
    front_end: FrontEnd,
    device: str | torch.device = "cpu",
    batch_seconds: float = 120.0,
) -> None:
    """Prepare all items once and keep the result in memory.

    Items then have "prepared" instead of "sig". Tokens take 2 kB per five
    seconds, features much more. A batch has at most `batch_seconds`.
    """
    front_end.to(device)
    prepared_by_id: dict[str, torch.Tensor] = {}
    outputs = dataset.pipeline.output_mapping
    dataset.set_output_keys(["id", "sig"])
    order = sorted(
        range(len(dataset)),
        key=lambda i: (
            dataset.data[dataset.data_ids[i]]["duration"]
            if "duration" in dataset.data[dataset.data_ids[i]]
            else 0.0
        ),
    )
    batch: list[dict] = []
    bar = tqdm(total=len(order), desc="preparing")
    for number, index in enumerate(order):
        batch.append(dataset[index])
        longest = max(item["sig"].shape[0] for item in batch)
        seconds = len(batch) * longest / front_end.sample_rate
        if seconds < batch_seconds and number + 1 < len(order):
            continue
        padded = PaddedBatch(batch).to(device)
        prepared, frames = front_end.prepare(*data_and_lengths(padded.sig))
        for name, x, n in zip(padded.id, prepared, frames, strict=True):
            prepared_by_id[name] = x[:n].cpu()
        bar.update(len(batch))
        batch = []
    bar.close()
    dataset.add_dynamic_item(prepared_by_id.__getitem__, "id", "prepared")
    outputs = {k: v for k, v in outputs.items() if k != "sig"}
    dataset.set_output_keys({**outputs, "prepared": "prepared"})


def _token_dataset(folder: Path, front_end: FrontEnd) -> TokenDataset:
    if not isinstance(front_end, TokenFrontEnd):
        raise ConfigError(
            f"{folder} holds tokens; {type(front_end).__name__} takes audio: "
            "set input: tokens"
        )
    codec = front_end.codec
    dataset = TokenDataset(
        folder, fingerprint=None if codec is None else codec.fingerprint
    )
    for name, expected, stored in (
        ("codebook_size", front_end.codebook_size, dataset.codebook_size),
        ("token_rate", front_end.rate, dataset.token_rate),
    ):
        if expected != stored:
            raise DataError(
                f"{folder}: has a {name} of {stored}, the front end {expected}"
            )
    return dataset


def _has_value(value: Any) -> bool:
    return value is not None and value != ""
