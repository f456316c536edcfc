"""Data of a task and export of the trained task, for its train.py."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechbrain.utils.distributed import run_on_main

from speechbrain_focalcodec.data.speeds import add_speeds
from speechbrain_focalcodec.data.splits import check_apart, split_within
from speechbrain_focalcodec.downstream.brain import TaskBrain
from speechbrain_focalcodec.downstream.data import (
    prepare_inputs,
    split_file,
    task_dataset,
)
from speechbrain_focalcodec.downstream.task import front_end_config, save_task
from speechbrain_focalcodec.downstream.task_config import (
    TaskConfig,
    parse_task_config,
)
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.training.entry import (
    log_splits,
    prepare_manifests,
)

logger = logging.getLogger(__name__)

__all__ = [
    "MODEL_FOLDER",
    "check_inputs",
    "describe_task",
    "make_datasets",
    "prepare_data",
    "save_trained_task",
]

SPLITS = ("train", "valid", "test")

# Module and class of the interface of each task.
INTERFACES = {
    "asr": ("interfaces", "TokenASR"),
    "classification": ("interfaces", "TokenClassifier"),
    "tts": ("synthesis", "TokenTTS"),
}

#: Folder of the trained task in the output folder.
MODEL_FOLDER = "model"


def prepare_data(prepare: Callable[..., Any], hparams: dict[str, Any]) -> None:
    """Prepare the splits by speakers, or within each class.

    With ``speeds``, the training data gets copies at these speeds.

    Arguments
    ---------
    prepare : callable
        Data preparation of the recipe's corpus; not called if ``tokens`` has
        all splits.
    hparams : dict
        As for :func:`~speechbrain_focalcodec.training.entry.prepare_manifests`.
        With ``within``, a column, ``valid_share`` and ``test_share`` of the
        utterances of each of its values are held out of ``train_splits``.

    Raises
    ------
    ConfigError
        If keys contradict each other, see :func:`check_inputs`.
    """
    check_inputs(hparams)
    if set(hparams["tokens"] or {}) >= set(SPLITS):
        return
    if hparams.get("within") is None:
        prepare_manifests(prepare, hparams)
    else:
        _prepare_within(prepare, hparams)
    if hparams.get("speeds"):
        train = Path(hparams["save_folder"]) / split_file("train")
        run_on_main(add_speeds, args=[train, hparams["speeds"]])


def _prepare_within(
    prepare: Callable[..., Any], hparams: dict[str, Any]
) -> None:
    run_on_main(
        prepare,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["save_folder"],
            "splits": hparams["train_splits"],
            **(hparams["prepare_options"] or {}),
        },
    )
    run_on_main(
        split_within,
        kwargs={
            "save_folder": hparams["save_folder"],
            "splits": hparams["train_splits"],
            "column": hparams["within"],
            "valid_share": hparams["valid_share"],
            "test_share": hparams["test_share"],
            "seed": hparams["seed"],
        },
    )


def check_inputs(hparams: dict[str, Any]) -> None:
    """Raise a ConfigError if hyperparameters would be ignored.

    Arguments
    ---------
    hparams : dict
        With ``prepare_once`` and, all optional, ``tokens``, ``augmentation``,
        ``speeds``, ``within``, ``valid_splits``, ``test_splits`` and
        ``num_valid``.
    """
    tokens = hparams.get("tokens") or {}
    unknown = sorted(set(tokens) - set(SPLITS))
    if unknown:
        raise ConfigError(
            f"tokens: {', '.join(unknown)} is none of {', '.join(SPLITS)}"
        )
    for name in ("valid_splits", "test_splits", "num_valid"):
        if hparams.get("within") is not None and hparams.get(name):
            raise ConfigError(
                f"{name} is not used with within, which holds shares of "
                "train_splits out: leave it empty, or set within: null"
            )
    if hparams.get("speeds") and "train" in tokens:
        raise ConfigError(
            "speeds makes copies of audio, and tokens.train holds none: leave "
            "one of them out"
        )
    if hparams.get("augmentation") is None:
        return
    if "train" in tokens:
        raise ConfigError(
            "augmentation changes waveforms, and tokens.train holds none: "
            "train on audio, with prepare_once: False"
        )
    if hparams["prepare_once"]:
        raise ConfigError(
            "augmentation changes waveforms, and with prepare_once they are "
            "taken once: set prepare_once: False"
        )


def make_datasets(
    brain: TaskBrain, hparams: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """Make the datasets with the inputs of the front end.

    Arguments
    ---------
    brain : TaskBrain
        Defines the items of an utterance.
    hparams : dict
        With ``save_folder``, ``data_folder``, ``prepare_once``, the options of
        each split, such as ``train_data_options``, and, optionally,
        ``tokens``.

    Returns
    -------
    train, valid, test : DynamicItemDataset or TokenDataset
        The datasets.

    Raises
    ------
    DataError
        If an utterance of validation or test is in the training data, or the
        training data does not suit the task.
    """
    tokens = hparams.get("tokens") or {}
    datasets = {}
    for split in SPLITS:
        source = Path(hparams["save_folder"]) / split_file(split)
        datasets[split] = task_dataset(
            tokens.get(split, source),
            hparams["data_folder"],
            brain.front_end,
            brain.items(),
            **hparams[f"{split}_data_options"],
        )
    ids = {split: dataset.data_ids for split, dataset in datasets.items()}
    check_apart(ids.pop("train"), ids)
    log_splits(datasets)
    brain.check_data(datasets["train"])
    for split, dataset in datasets.items():
        if hparams["prepare_once"] and split not in tokens:
            prepare_inputs(dataset, brain.front_end, brain.device)
    train, valid, test = datasets.values()
    return train, valid, test


def describe_task(brain: Any, hparams: dict[str, Any]) -> TaskConfig | None:
    """Configuration of the trained task.

    Arguments
    ---------
    brain : TaskBrain
        The Brain.
    hparams : dict
        With ``input``, ``codec_source`` and ``embedding``.

    Returns
    -------
    TaskConfig or None
        None if no interface can load the task or its network, which is logged.
    """
    try:
        described = brain.config()
    except ConfigError as error:
        logger.warning(
            "This run leaves checkpoints, but no %s/ for from_pretrained: %s",
            MODEL_FOLDER,
            error,
        )
        return None
    if described is None:
        return None
    front_end = front_end_config(brain.front_end, hparams)
    return parse_task_config({**described, "front_end": front_end})


def save_trained_task(brain: TaskBrain, described: TaskConfig | None) -> None:
    """Save the trained task for its interface, and log how to load it.

    Arguments
    ---------
    brain : TaskBrain
        Brain with its best checkpoint loaded.
    described : TaskConfig or None
        Result of :func:`describe_task`.
    """
    folder = brain.hparams.output_folder
    if brain.debug and not brain.debug_persistently:
        # A debug run has no checkpoint, and the folder may hold a model of
        # another run.
        logger.info(f"{folder}: a --debug run keeps no model; train without it")
        return
    if described is None:
        logger.info(
            f"The results are in {folder}, the checkpoints in its save/."
        )
        return
    model = Path(folder) / MODEL_FOLDER
    run_on_main(_save, args=[brain, described, model])
    module, name = INTERFACES[described.model_dump()["task"]]
    logger.info(
        f"The trained task is in {model}, the results in {folder}. Next, in "
        "Python:\n"
        f"  from speechbrain_focalcodec.downstream.{module} import {name}\n"
        f'  task = {name}.from_pretrained("{model}")'
    )


def _save(brain: TaskBrain, described: TaskConfig, model: Path) -> None:
    modules = {
        name: getattr(module, "module", module)
        for name, module in brain.modules.items()
    }
    tokenizer = getattr(brain.hparams, "tokenizer", None)
    save_task(model, described, modules, tokenizer)
