"""The flow of the recipes' train.py, from hyperparameters made by a test."""

import re

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML

from speechbrain_focalcodec.downstream import entry as tasks
from speechbrain_focalcodec.training.caching import use_feature_cache
from speechbrain_focalcodec.training.checkpointing import RANK
from speechbrain_focalcodec.training.entry import (
    make_datasets,
    make_evaluation,
    train_batches,
)


def load_yaml(path, overrides=""):
    """What load_hyperpyyaml makes of a file."""
    with open(path, encoding="utf-8") as stream:
        return load_hyperpyyaml(stream, overrides)


def read_yaml(path, overrides=""):
    """The tree of a file: references resolved, tags kept, nothing made."""
    with open(path, encoding="utf-8") as stream:
        text = resolve_references(stream, overrides, True).getvalue()
    return YAML().load(text)


def change_yaml(path, changes):
    """The text of a file with other values of keys, and more keys."""
    text = path.read_text(encoding="utf-8")
    for key in re.findall(r"^(\w+):", changes, re.M):
        text = re.sub(rf"^{key}:.*\n(?: .*\n)*", "", text, flags=re.M)
    return text + changes


def fit_and_evaluate(hparams, run_opts):
    """Train a codec's stage on data that is prepared."""
    train_set, valid_set, test_set = make_datasets(hparams)
    brain = _make_brain(hparams, run_opts, hparams["modules"])
    evaluation = make_evaluation(brain, hparams)
    if hparams.get("feature_cache"):
        datasets = {"train": train_set, "valid": valid_set}
        use_feature_cache(brain, datasets, hparams)
    _fit(brain, hparams, train_set, valid_set, test_set)
    if evaluation is not None:
        evaluation.run()


def fit_and_test(hparams, run_opts):
    """Train a task on data that is prepared."""
    tasks.check_inputs(hparams)
    modules = {
        "front_end": hparams["front_end"],
        **hparams["brain"].build(hparams),
        **hparams["modules"],
    }
    brain = _make_brain(hparams, run_opts, modules)
    datasets = tasks.make_datasets(brain, hparams)
    described = tasks.describe_task(brain, hparams)
    _fit(brain, hparams, *datasets)
    tasks.save_trained_task(brain, described)


def _make_brain(hparams, run_opts, modules):
    return hparams["brain"](
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )


def _fit(brain, hparams, train_set, valid_set, test_set):
    brain.fit(
        hparams["epoch_counter"],
        train_batches(brain, train_set, hparams),
        valid_set,
        train_loader_kwargs=hparams["train_loader"],
        valid_loader_kwargs=hparams["valid_loader"],
    )
    brain.evaluate(
        test_set, min_key=RANK, test_loader_kwargs=hparams["valid_loader"]
    )
