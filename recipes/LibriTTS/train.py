#!/usr/bin/env python
"""Train a stage of FocalCodec on LibriTTS.

    python recipes/LibriTTS/train.py hparams/train/STAGE.yaml --data_folder=D

The YAML chooses the stage; see README.md beside this file.
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml

from speechbrain_focalcodec.data.corpora import prepare_libritts
from speechbrain_focalcodec.training.caching import use_feature_cache
from speechbrain_focalcodec.training.checkpointing import RANK
from speechbrain_focalcodec.training.entry import (
    make_datasets,
    make_evaluation,
    prepare_manifests,
    train_batches,
)
from speechbrain_focalcodec.training.recipe import experiment

if __name__ == "__main__":
    with experiment() as run:
        hparams_file, run_opts, overrides = run.parse_arguments(sys.argv[1:])
        sb.utils.distributed.ddp_init_group(run_opts)
        with open(hparams_file, encoding="utf-8") as fin:
            hparams = load_hyperpyyaml(fin, overrides)

        # Prepare manifests and make datasets.
        prepare_manifests(prepare_libritts, hparams)
        train_set, valid_set, test_set = make_datasets(hparams)

        brain = hparams["brain"](
            modules=hparams["modules"],
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
        evaluation = make_evaluation(brain, hparams)
        if hparams.get("feature_cache"):
            datasets = {"train": train_set, "valid": valid_set}
            use_feature_cache(brain, datasets, hparams)

        # Created when the training starts, after all checks.
        run.create_directory(brain)
        brain.fit(
            hparams["epoch_counter"],
            train_batches(brain, train_set, hparams),
            valid_set,
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
            sb.utils.logger.get_logger(__name__).info(line)
