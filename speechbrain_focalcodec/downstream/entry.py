"""Data of a task and the trained task, as its train.py asks for them."""

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
    prepare_manifests,
    tell_splits,
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

# What loads a trained task, by the task.
INTERFACES = {
    "asr": ("interfaces", "TokenASR"),
    "classification": ("interfaces", "TokenClassifier"),
    "tts": ("synthesis", "TokenTTS"),
}

#: Where a run leaves its trained task, within its output folder.
MODEL_FOLDER = "model"


def prepare_data(prepare: Callable[..., Any], hparams: dict[str, Any]) -> None:
    """Prepare the splits, by whole speakers or within each class.

    With ``speeds``, the training data has copies at these.

    Arguments
    ---------
    prepare : callable
        Data preparation of the recipe's corpus. It is not called where
        ``tokens`` has all splits.
    hparams : dict
        As for :func:`~speechbrain_focalcodec.training.entry.prepare_manifests`;
        with ``within``, a column, each of its values has the ``valid_share``
        and the ``test_share`` of its utterances held out of ``train_splits``.

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
    """Refuse what would be passed over in silence.

    Arguments
    ---------
    hparams : dict
        With ``prepare_once`` and, all optional, ``tokens``, ``augmentation``,
        ``speeds``, ``within``, ``valid_splits``, ``test_splits`` and
        ``num_valid``.

    Raises
    ------
    ConfigError
        If ``tokens`` names what is no split, ``augmentation`` or ``speeds``
        would see no waveforms, or ``within`` would leave other splits unused.

    Example
    -------
    >>> check_inputs({"prepare_once": True, "tokens": {"dev": "tokens/dev"}})
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.ConfigError: tokens: dev is none of train...
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
    """Make the datasets, and what they hold for the front end.

    Arguments
    ---------
    brain : TaskBrain
        Says what it takes of an utterance.
    hparams : dict
        With ``save_folder``, ``data_folder``, ``prepare_once``, the options
        of each split, such as ``train_data_options``, and, optionally,
        ``tokens``.

    Returns
    -------
    train, valid, test : DynamicItemDataset or TokenDataset
        The datasets.

    Raises
    ------
    DataError
        If an utterance of validation or test is in the training data, or the
        task can learn nothing of it.
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
    tell_splits(datasets)
    brain.check_data(datasets["train"])
    for split, dataset in datasets.items():
        if hparams["prepare_once"] and split not in tokens:
            prepare_inputs(dataset, brain.front_end, brain.device)
    train, valid, test = datasets.values()
    return train, valid, test


def describe_task(brain: Any, hparams: dict[str, Any]) -> TaskConfig | None:
    """What a trained task is made of, if an interface can make it.

    Arguments
    ---------
    brain : TaskBrain
        The Brain.
    hparams : dict
        With ``input``, ``codec_source`` and ``embedding``.

    Returns
    -------
    TaskConfig or None
        `None` for a task without an interface, or with a network that
        ``from_pretrained`` does not know, which is then said.
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
    """Leave what the interfaces load, and log how to load it.

    Arguments
    ---------
    brain : TaskBrain
        With its best checkpoint loaded.
    described : TaskConfig or None
        Of :func:`describe_task`.
    """
    folder = brain.hparams.output_folder
    if brain.debug and not brain.debug_persistently:
        # SpeechBrain keeps no checkpoint of what is only tried; the folder
        # may hold what another run has trained.
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
