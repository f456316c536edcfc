#!/usr/bin/env python
"""Train a small synthesiser on AN4 and a part of LibriSpeech.

    python recipes/AN4/TTS/train.py hparams/downstream/tts_small.yaml \
        --data_folder=DATA

DATA holds AN4/ and LibriSpeech/. See ../README.md.
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml

from speechbrain_focalcodec.data.corpora import prepare_corpora
from speechbrain_focalcodec.downstream.entry import (
    describe_task,
    make_datasets,
    prepare_data,
    save_trained_task,
)
from speechbrain_focalcodec.training.checkpointing import RANK
from speechbrain_focalcodec.training.entry import train_batches
from speechbrain_focalcodec.training.recipe import experiment

if __name__ == "__main__":
    with experiment() as run:
        hparams_file, run_opts, overrides = run.parse_arguments(sys.argv[1:])
        sb.utils.distributed.ddp_init_group(run_opts)
        with open(hparams_file, encoding="utf-8") as fin:
            hparams = load_hyperpyyaml(fin, overrides)

        # Manifests of the splits, before tokenizers and classes.
        prepare_data(prepare_corpora, hparams)
        modules = {
            "front_end": hparams["front_end"],
            **hparams["brain"].build(hparams),
            **hparams["modules"],
        }
        brain = hparams["brain"](
            modules=modules,
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
        train_set, valid_set, test_set = make_datasets(brain, hparams)
        described = describe_task(brain, hparams)

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
        save_trained_task(brain, described)
