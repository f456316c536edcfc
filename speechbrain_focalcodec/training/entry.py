"""What every recipe's train.py does: data, training, test, what comes next."""

from collections.abc import Callable, Iterator, Sequence
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
from speechbrain_focalcodec.training.caching import use_feature_cache
from speechbrain_focalcodec.training.checkpointing import RANK
from speechbrain_focalcodec.training.evaluation import FinalEvaluation
from speechbrain_focalcodec.training.recipe import run_recipe

__all__ = [
    "fit_and_evaluate",
    "main",
    "prepare_manifests",
    "tell_splits",
    "train_batches",
]

logger = get_logger(__name__)


def main(prepare: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Run the recipe of a codec's stage.

    Arguments
    ---------
    prepare : callable
        Data preparation of the recipe's corpus.
    arguments : sequence of str
        The command line: a YAML and SpeechBrain's options.
    """

    def work(hparams: dict, run_opts: Any, begin: Callable[[], None]) -> None:
        prepare_manifests(prepare, hparams)
        fit_and_evaluate(hparams, run_opts, begin)

    run_recipe(work, arguments)


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
        A split that is the path of a JSON manifest is not prepared but taken
        as it is, see
        :func:`~speechbrain_focalcodec.data.manifest.take_manifests`.

    Raises
    ------
    ConfigError
        If there are both ``valid_splits`` and ``num_valid``: it would take
        training speakers away that nobody asked for.
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


def fit_and_evaluate(
    hparams: dict[str, Any],
    run_opts: Any,
    begin: Callable[[], None] | None = None,
) -> None:
    """Train the Brain that the YAML names, and evaluate its best checkpoint.

    Losses are those of ``test_splits``, or of the validation data where there
    are none; with ``evaluation``, the harness measures the codec on the same,
    see :mod:`~speechbrain_focalcodec.training.evaluation`.

    Arguments
    ---------
    hparams : dict
        The loaded YAML, see `hparams/train/`.
    run_opts : RunOptions or dict
        SpeechBrain's run options.
    begin : callable, optional
        Called once modules, checkpoint and data fit together.
    """
    cached = hparams.get("feature_cache") is not None
    save_folder = Path(hparams["save_folder"])

    def dataset(name: str, split: str, preload: bool) -> Any:
        return make_dataset(
            save_folder / name,
            hparams["data_folder"],
            hparams["sample_rate"],
            seed=hparams["seed"],
            preload=preload,
            **hparams[f"{split}_data_options"],
        )

    datasets = {
        split: dataset(
            f"{split}.json", split, hparams["preload"] and not cached
        )
        for split in ("train", "valid")
    }
    test_set, test_name = datasets["valid"], "valid.json"
    test_splits = hparams.get("test_splits")
    if test_splits:
        test_name = TEST_NAME
        test_set = dataset(test_name, "valid", preload=False)
    brain = hparams["brain"](
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    evaluation = None
    if hparams.get("evaluation"):
        evaluation = FinalEvaluation(
            brain,
            hparams["evaluation"],
            save_folder / test_name,
            hparams["data_folder"],
        )
        evaluation.check()
    tell_splits({**datasets, **({"test": test_set} if test_splits else {})})
    if cached:
        use_feature_cache(brain, datasets, hparams)
    if begin is not None:
        brain.at_start.append(begin)
    brain.fit(
        hparams["epoch_counter"],
        train_batches(brain, datasets["train"], hparams),
        datasets["valid"],
        train_loader_kwargs=hparams["train_loader"],
        valid_loader_kwargs=hparams["valid_loader"],
    )
    brain.evaluate(
        test_set,
        min_key=RANK,
        test_loader_kwargs=hparams["valid_loader"],
    )
    if evaluation is not None:
        evaluation.run()
    for line in brain.next_steps():
        logger.info(line)


def tell_splits(datasets: dict[str, Any]) -> None:
    """Log utterances, hours and speakers of each split.

    Arguments
    ---------
    datasets : dict
        Datasets by split.
    """
    for name, dataset in datasets.items():
        logger.info(f"{name}: {describe_split(_utterances(dataset))}")


def _utterances(dataset: Any) -> Iterator[tuple[float, str | None]]:
    """Seconds and speaker of each item."""
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
    """What ``Brain.fit`` takes: the dataset, or batches of it by duration.

    Arguments
    ---------
    brain : RecipeBrain
        Keeps the loader's position in its checkpoints.
    dataset : DynamicItemDataset or TokenDataset
        The training data.
    hparams : dict
        With ``seed``, ``train_loader`` and, for batches by duration,
        ``max_batch_seconds``.

    Returns
    -------
    DynamicItemDataset, TokenDataset or ResumableLoader
        Without ``max_batch_seconds``, the dataset itself.
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
        # The number of items is free, as it is for waveforms.
        options["batch_size"] = None
        options["max_batch_tokens"] = int(seconds * dataset.token_rate)
        loader = TokenLoader(dataset, **options)
    else:
        loader = duration_loader(dataset, seconds, **options)
    if brain.checkpointer is not None:
        brain.checkpointer.add_recoverable("dataloader-TRAIN", loader)
    return loader
