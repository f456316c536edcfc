"""Tokenizers and classes learnt from the training data."""

from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_focalcodec.data.manifest import read_manifest
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.downstream.data import COLUMNS
from speechbrain_focalcodec.downstream.text import TextTokenizer
from speechbrain_focalcodec.errors import DataError

__all__ = ["column_of", "learn_classes", "learn_pieces", "network_and_output"]

logger = get_logger(__name__)

#: File of the tokenizer in the folder of a trained task.
TOKENIZER_FILE = "tokenizer.model"


def column_of(hparams: dict[str, Any], column: str) -> list[tuple[float, Any]]:
    """Duration in seconds and a column's value of each training utterance.

    The data is in ``save_folder``, or in ``tokens`` as a token dataset. The
    value is None if the utterance has none.
    """
    folder = (hparams.get("tokens") or {}).get("train")
    if folder is None:
        path = Path(hparams["save_folder"]) / "train.json"
        return [
            (entry["num_samples"] / entry["sample_rate"], entry.get(column))
            for entry in read_manifest(path).values()
        ]
    column = COLUMNS.get(column, column)
    dataset = TokenDataset(folder, output_keys=["duration", column])
    return [(item["duration"], item[column]) for item in dataset]


def learn_pieces(hparams: dict[str, Any]) -> TextTokenizer:
    """Train a tokenizer on the training texts, or load it if it is there.

    `hparams` has ``tokenizer_kind``, ``tokenizer_size`` and ``save_folder``.
    The tokenizer has fewer pieces if the texts do not contain as many.
    """
    kind, size = hparams["tokenizer_kind"], hparams["tokenizer_size"]
    # Runs with other kinds and sizes may share the folder.
    name = kind if kind == "char" else f"{kind}_{size}"
    path = Path(hparams["save_folder"]) / f"tokenizer_{name}.model"

    def learn() -> None:
        if not path.exists():
            texts = [text for _, text in column_of(hparams, "text") if text]
            TextTokenizer.train(texts, kind, size, at_most=True).save(path)

    run_on_main(learn)
    tokenizer = TextTokenizer.load(path)
    if kind != "char" and tokenizer.size < size:
        logger.warning(
            f"tokenizer_size is {size}, but the training texts have "
            f"{tokenizer.size} pieces of the kind {kind}: using those"
        )
    return tokenizer


def learn_classes(hparams: dict[str, Any]) -> list[str]:
    """Sorted names of the classes in the training data's column ``label``.

    Raises a DataError if there are fewer than two.
    """
    column = hparams["label"]
    names = {name for _, name in column_of(hparams, column)}
    classes = sorted(str(name) for name in names if name is not None)
    if len(classes) < 2:
        raise DataError(
            f"label: {column} has {len(classes)} class(es) in the training "
            "data, and at least two are required"
        )
    return classes


def network_and_output(
    hparams: dict[str, Any], num_outputs: int
) -> dict[str, torch.nn.Module]:
    """Make the network of the YAML and a linear output layer.

    Arguments
    ---------
    hparams : dict
        With ``front_end`` and ``network``, a callable that takes
        ``input_dim`` and returns a module with ``output_dim``.
    num_outputs : int
        Number of scores.

    Returns
    -------
    dict
        ``network`` and ``output``.
    """
    network = hparams["network"](input_dim=hparams["front_end"].dim)
    output = torch.nn.Linear(network.output_dim, num_outputs)
    return {"network": network, "output": output}
