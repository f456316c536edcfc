"""What a task learns of its training data before it can be made."""

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

#: Pieces of text in the folder of a trained task.
TOKENIZER_FILE = "tokenizer.model"


def column_of(hparams: dict[str, Any], column: str) -> list[tuple[float, Any]]:
    """Seconds and a column of each training utterance.

    Arguments
    ---------
    hparams : dict
        With ``save_folder``, or ``tokens`` of the training data.
    column : str
        Name of a column, as in manifests.

    Returns
    -------
    list of (float, Any)
        `None` where an utterance has none.
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
    """Learn the text's pieces from the training data, or find them learnt.

    They are kept in the save folder, in a file for each kind and size. Where
    the texts have fewer than asked for, these are taken.

    Arguments
    ---------
    hparams : dict
        With ``tokenizer_kind``, ``tokenizer_size``, ``save_folder``.

    Returns
    -------
    TextTokenizer
        The tokenizer.
    """
    kind, size = hparams["tokenizer_kind"], hparams["tokenizer_size"]
    # Another run in the folder may want others: characters may be too many.
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
            f"{tokenizer.size} pieces of the kind {kind}: trains with those"
        )
    return tokenizer


def learn_classes(hparams: dict[str, Any]) -> list[str]:
    """The classes of the training data.

    Arguments
    ---------
    hparams : dict
        With ``label``, the column that names an utterance's class.

    Returns
    -------
    list of str
        Their names, sorted.

    Raises
    ------
    DataError
        If there are fewer than two.
    """
    column = hparams["label"]
    names = {name for _, name in column_of(hparams, column)}
    classes = sorted(str(name) for name in names if name is not None)
    if len(classes) < 2:
        raise DataError(
            f"label: {column} has {len(classes)} class(es) in the training "
            "data, and a classification needs two at least"
        )
    return classes


def network_and_output(
    hparams: dict[str, Any], num_outputs: int
) -> dict[str, torch.nn.Module]:
    """Make the network that the YAML names, and scores on top.

    Arguments
    ---------
    hparams : dict
        With ``front_end`` and ``network``, a callable that takes
        ``input_dim`` and gives a module with ``output_dim``.
    num_outputs : int
        How many scores.

    Returns
    -------
    dict
        ``network`` and ``output``.

    Example
    -------
    >>> import functools
    >>> from speechbrain_focalcodec.downstream.front_ends import make_front_end
    >>> from speechbrain_focalcodec.downstream.networks import BiLSTM
    >>> made = network_and_output(
    ...     {
    ...         "front_end": make_front_end("log_mel"),
    ...         "network": functools.partial(BiLSTM, hidden_dim=8),
    ...     },
    ...     num_outputs=3,
    ... )
    >>> made["output"]
    Linear(in_features=16, out_features=3, bias=True)
    """
    network = hparams["network"](input_dim=hparams["front_end"].dim)
    output = torch.nn.Linear(network.output_dim, num_outputs)
    return {"network": network, "output": output}
