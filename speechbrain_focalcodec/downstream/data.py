"""Datasets of tasks: what the front end prepares, with labels.

The items hold "id", "prepared" (tokens or features, from a token dataset or
computed once), or "sig" where the front end shall work on the fly, and what
the task asks for.
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

#: Columns of manifests that a token dataset has another name for.
COLUMNS = {"spk_id": "speaker"}


def split_file(split: str) -> str:
    """Name of the manifest that the preparation leaves for a split.

    Arguments
    ---------
    split : str
        ``train``, ``valid`` or ``test``.

    Returns
    -------
    str
        Name of a file in the save folder.

    Example
    -------
    >>> split_file("train")
    'train.json'
    """
    return TEST_NAME if split == "test" else f"{split}.json"


def task_dataset(
    source: str | Path,
    data_root: str | Path | None,
    front_end: FrontEnd,
    items: Mapping[str, tuple[str, Any]],
    **options: Any,
) -> Any:
    """Make a task's dataset of a manifest or of a token dataset.

    Utterances that lack what the task needs are left out.

    Arguments
    ---------
    source : str or Path
        A manifest, or a folder that ``focalcodec tokenize`` has made.
    data_root : str or Path, optional
        The data folder that the manifest's paths are relative to.
    front_end : FrontEnd
        The front end; that of a token dataset must be a
        :class:`~speechbrain_focalcodec.downstream.front_ends.TokenFrontEnd`.
    items : mapping
        By key of an item: the column that it is made of, and a function, or
        `None` for the column itself. ``{"labels": ("text", encode)}``.
    **options : dict
        As for :func:`~speechbrain_focalcodec.data.pipeline.make_dataset`.

    Returns
    -------
    DynamicItemDataset or TokenDataset
        The dataset.

    Raises
    ------
    DataError
        If no utterance has what the task needs, or the tokens are another
        model's.
    ConfigError
        If the front end takes no tokens.

    Example
    -------
    >>> from make_tokens import make_tokens  # in tests/
    >>> folder = make_tokens(getfixture("tmp_path") / "tokens")
    >>> front_end = TokenFrontEnd(codebook_size=8192, token_rate=50.0)
    >>> items = {"name": ("speaker", str.upper)}
    >>> dataset = task_dataset(folder, None, front_end, items)
    >>> sorted(dataset[0])
    ['id', 'name', 'prepared']
    """
    source = Path(source)
    dataset: Any
    if source.is_dir():
        columns = {key: COLUMNS.get(c, c) for key, (c, _) in items.items()}
        dataset = _tokens(source, front_end)
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
            if all(_is_given(entry.get(c)) for c in columns.values())
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
            # An item must not have the name of its column.
            outputs[key] = f"made_{key}"
            dataset.add_dynamic_item(function, columns[key], f"made_{key}")
    if source.is_dir():
        wanted = set(columns.values())
        dataset = dataset.filtered_sorted(
            key_test={column: _is_given for column in wanted}
        )
        if not len(dataset):
            raise DataError(f"{source}: no item has {', '.join(wanted)}")
    dataset.set_output_keys(outputs)
    return dataset


def prepare_inputs(
    dataset: DynamicItemDataset,
    front_end: FrontEnd,
    device: str | torch.device = "cpu",
    batch_seconds: float = 120.0,
    progress: bool = True,
) -> None:
    """Let the front end prepare all items once, and keep that in memory.

    The items then have "prepared" in place of "sig". Tokens take 2 kB for
    five seconds, features much more.

    Arguments
    ---------
    dataset : DynamicItemDataset
        Of :func:`task_dataset`, from a manifest.
    front_end : FrontEnd
        The front end.
    device : str or torch.device
        Where it works.
    batch_seconds : float
        Seconds of a batch.
    progress : bool
        Whether to show a bar.

    Example
    -------
    >>> import numpy, soundfile
    >>> from speechbrain_focalcodec.data.manifest import write_manifest
    >>> from speechbrain_focalcodec.downstream.front_ends import LogMelFrontEnd
    >>> tmp = getfixture("tmp_path")
    >>> soundfile.write(tmp / "a.wav", numpy.zeros(16000), 16000)
    >>> entry = {"wav": "{data_root}/a.wav", "num_samples": 16000}
    >>> entry |= {"sample_rate": 16000, "text": "GO"}
    >>> write_manifest(tmp / "train.json", {"a": entry})
    >>> front_end = LogMelFrontEnd()
    >>> items = {"text": ("text", None)}
    >>> dataset = task_dataset(tmp / "train.json", tmp, front_end, items)
    >>> prepare_inputs(dataset, front_end, progress=False)
    >>> dataset[0]["prepared"].shape
    torch.Size([50, 160])
    """
    front_end.to(device)
    kept: dict[str, torch.Tensor] = {}
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
    bar = tqdm(total=len(order), disable=not progress, desc="preparing")
    for number, index in enumerate(order):
        batch.append(dataset[index])
        longest = max(item["sig"].shape[0] for item in batch)
        seconds = len(batch) * longest / front_end.sample_rate
        if seconds < batch_seconds and number + 1 < len(order):
            continue
        padded = PaddedBatch(batch).to(device)
        prepared, frames = front_end.prepare(*data_and_lengths(padded.sig))
        for name, x, n in zip(padded.id, prepared, frames, strict=True):
            kept[name] = x[:n].cpu()
        bar.update(len(batch))
        batch = []
    bar.close()
    dataset.add_dynamic_item(kept.__getitem__, "id", "prepared")
    outputs = {k: v for k, v in outputs.items() if k != "sig"}
    dataset.set_output_keys({**outputs, "prepared": "prepared"})


def _tokens(folder: Path, front_end: FrontEnd) -> TokenDataset:
    if not isinstance(front_end, TokenFrontEnd):
        raise ConfigError(
            f"{folder} holds tokens; {type(front_end).__name__} takes audio: "
            "set input: tokens"
        )
    codec = front_end.codec
    dataset = TokenDataset(
        folder, fingerprint=None if codec is None else codec.fingerprint
    )
    for name, ours, theirs in (
        ("codebook_size", front_end.codebook_size, dataset.codebook_size),
        ("token_rate", front_end.rate, dataset.token_rate),
    ):
        if ours != theirs:
            raise DataError(
                f"{folder}: has a {name} of {theirs}, the front end {ours}"
            )
    return dataset


def _is_given(value: Any) -> bool:
    return value is not None and value != ""
