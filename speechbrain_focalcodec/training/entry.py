"""What every recipe's train.py does around its experiment directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechbrain.utils.distributed import run_on_main

from speechbrain_focalcodec.data.batching import duration_loader
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.data.splits import merge_manifests
from speechbrain_focalcodec.training.caching import use_feature_cache

__all__ = ["fit_and_evaluate", "prepare_manifests"]


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
        ``prepare_options`` (more arguments of `prepare`).
    """
    splits = {name: hparams[name] for name in ("train_splits", "valid_splits")}
    run_on_main(
        prepare,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["save_folder"],
            "splits": sum(splits.values(), []),
            **(hparams.get("prepare_options") or {}),
        },
    )
    run_on_main(
        merge_manifests,
        kwargs={
            "save_folder": hparams["save_folder"],
            "num_valid": hparams["num_valid"],
            "seed": hparams["seed"],
            **splits,
        },
    )


def fit_and_evaluate(hparams: dict[str, Any], run_opts: dict[str, Any]) -> None:
    """Train the Brain that the YAML names, and evaluate its best checkpoint.

    Arguments
    ---------
    hparams : dict
        The loaded YAML, see `hparams/train/`.
    run_opts : dict
        SpeechBrain's run options.
    """
    sample_rate = hparams["sample_rate"]
    cached = hparams.get("feature_cache") is not None
    datasets = {
        split: make_dataset(
            Path(hparams["save_folder"]) / f"{split}.json",
            hparams["data_folder"],
            sample_rate,
            seed=hparams["seed"],
            preload=hparams["preload"] and not cached,
            **options,
        )
        for split, options in (
            ("train", hparams["train_data_options"]),
            ("valid", hparams["valid_data_options"]),
        )
    }
    brain = hparams["brain"](
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    if cached:
        use_feature_cache(brain, datasets, hparams)
    train_set: Any = datasets["train"]
    max_batch_seconds = hparams.get("max_batch_seconds")
    if max_batch_seconds is not None:
        train_set = duration_loader(
            train_set,
            max_batch_seconds,
            hparams["seed"],
            generator=brain.loader_generator,
            **hparams["train_loader"],
        )
        if brain.checkpointer is not None:
            brain.checkpointer.add_recoverable("dataloader-TRAIN", train_set)
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        datasets["valid"],
        train_loader_kwargs=hparams["train_loader"],
        valid_loader_kwargs=hparams["valid_loader"],
    )
    brain.evaluate(
        datasets["valid"],
        min_key="loss",
        test_loader_kwargs=hparams["valid_loader"],
    )
