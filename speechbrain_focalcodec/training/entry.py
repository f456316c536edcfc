"""Data and evaluation of a recipe, as its train.py asks for them."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_focalcodec.data.batching import duration_loader
from speechbrain_focalcodec.data.manifest import (
    is_manifest,
    manifest_split,
    take_manifests,
)
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.data.splits import (
    TEST_NAME,
    describe_split,
    merge_manifests,
)
from speechbrain_focalcodec.data.token_loader import TokenLoader
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.training.evaluation import FinalEvaluation

__all__ = [
    "make_datasets",
    "make_evaluation",
    "prepare_manifests",
    "log_splits",
    "train_batches",
]

logger = get_logger(__name__)


def prepare_manifests(
    prepare: Callable[..., Any], hparams: dict[str, Any]
) -> None:
    """Prepare the splits and join them, on the main process.

    Arguments
    ---------
    prepare : callable
        Data preparation of the recipe's corpus.
    hparams : dict
        With ``data_folder``, ``save_folder``, ``train_splits``,
        ``valid_splits``, ``num_valid``, ``seed`` and, optionally,
        ``test_splits`` and ``prepare_options`` (more arguments of `prepare`).
        A split that is the path of a JSON manifest is not prepared but used,
        see :func:`~speechbrain_focalcodec.data.manifest.take_manifests`.

    Raises
    ------
    ConfigError
        If both ``valid_splits`` and ``num_valid`` are set.
    """
    splits = {
        name: hparams.get(name) or []
        for name in ("train_splits", "valid_splits", "test_splits")
    }
    if splits["valid_splits"] and hparams["num_valid"]:
        raise ConfigError(
            f"valid_splits is {splits['valid_splits']}, and num_valid="
            f"{hparams['num_valid']} would hold utterances out of train_splits "
            "too: give --num_valid=0, or --valid_splits=[]"
        )
    names = list(dict.fromkeys(chain(*splits.values())))
    manifests = [name for name in names if is_manifest(name)]
    folders = {key: hparams[key] for key in ("data_folder", "save_folder")}
    run_on_main(take_manifests, kwargs={"paths": manifests, **folders})
    if len(manifests) < len(names):
        run_on_main(
            prepare,
            kwargs={
                "splits": [name for name in names if name not in manifests],
                **folders,
                **(hparams.get("prepare_options") or {}),
            },
        )
    splits = {
        key: [manifest_split(x) if is_manifest(x) else x for x in value]
        for key, value in splits.items()
    }
    run_on_main(
        merge_manifests,
        kwargs={
            "save_folder": hparams["save_folder"],
            "num_valid": hparams["num_valid"],
            "seed": hparams["seed"],
            **splits,
        },
    )


def make_datasets(hparams: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Make the datasets of the prepared splits.

    Arguments
    ---------
    hparams : dict
        With ``save_folder``, ``data_folder``, ``sample_rate``, ``seed``,
        ``preload``, ``train_data_options``, ``valid_data_options`` and,
        optionally, ``test_splits`` and ``feature_cache``.

    Returns
    -------
    train, valid, test : DynamicItemDataset
        Without ``test_splits``, `test` is `valid`.
    """

    def dataset(name: str, split: str, preload: bool) -> Any:
        return make_dataset(
            Path(hparams["save_folder"]) / name,
            hparams["data_folder"],
            hparams["sample_rate"],
            seed=hparams["seed"],
            preload=preload,
            **hparams[f"{split}_data_options"],
        )

    # With a feature cache no audio is read.
    preload = hparams["preload"] and not hparams.get("feature_cache")
    datasets = {
        split: dataset(f"{split}.json", split, preload)
        for split in ("train", "valid")
    }
    if hparams.get("test_splits"):
        datasets["test"] = dataset(TEST_NAME, "valid", preload=False)
    log_splits(datasets)
    train, valid = datasets["train"], datasets["valid"]
    return train, valid, datasets.get("test", valid)


def make_evaluation(
    brain: Any, hparams: dict[str, Any]
) -> FinalEvaluation | None:
    """Make the evaluation at the end of the training and check its needs.

    The codec is evaluated on ``test_splits``, or on the validation data if
    there are none.

    Arguments
    ---------
    brain : CodecBrain
        Brain of the codec to evaluate.
    hparams : dict
        With ``save_folder``, ``data_folder`` and, optionally, ``evaluation``
        and ``test_splits``.

    Returns
    -------
    FinalEvaluation or None
        None without ``evaluation``.
    """
    if not hparams.get("evaluation"):
        return None
    name = TEST_NAME if hparams.get("test_splits") else "valid.json"
    evaluation = FinalEvaluation(
        brain,
        hparams["evaluation"],
        Path(hparams["save_folder"]) / name,
        hparams["data_folder"],
    )
    evaluation.check()
    return evaluation


def log_splits(datasets: dict[str, Any]) -> None:
    """Log utterances, hours and speakers of each split."""
    for name, dataset in datasets.items():
        logger.info(f"{name}: {describe_split(_utterances(dataset))}")


def _utterances(dataset: Any) -> Iterator[tuple[float, str | None]]:
    """Duration (s) and speaker of each item."""
    if isinstance(dataset, TokenDataset):
        with dataset.output_keys_as(["duration", "speaker"]):
            for index in range(len(dataset)):
                item = dataset[index]
                yield item["duration"], item["speaker"]
        return
    for entry in map(dataset.data.__getitem__, dataset.data_ids):
        seconds = entry.get("duration")
        if seconds is None:
            seconds = entry["num_samples"] / entry["sample_rate"]
        yield seconds, entry.get("spk_id")


def train_batches(brain: Any, dataset: Any, hparams: dict[str, Any]) -> Any:
    """Training data for ``Brain.fit``: a dataset, or batches by duration.

    Arguments
    ---------
    brain : RecipeBrain
        Its checkpoints keep the loader's position.
    dataset : DynamicItemDataset or TokenDataset
        Training data.
    hparams : dict
        With ``seed``, ``train_loader`` and, for batches by duration,
        ``max_batch_seconds``.

    Returns
    -------
    DynamicItemDataset, TokenDataset or ResumableLoader
        The dataset itself without ``max_batch_seconds``.
    """
    seconds = hparams.get("max_batch_seconds")
    if seconds is None:
        return dataset
    options = {
        **hparams["train_loader"],
        "seed": hparams["seed"],
        "generator": brain.loader_generator,
    }
    if isinstance(dataset, TokenDataset):
        # The batch size varies, as for waveforms.
        options["batch_size"] = None
        options["max_batch_tokens"] = int(seconds * dataset.token_rate)
        loader = TokenLoader(dataset, **options)
    else:
        loader = duration_loader(dataset, seconds, **options)
    if brain.checkpointer is not None:
        brain.checkpointer.add_recoverable("dataloader-TRAIN", loader)
    return loader
