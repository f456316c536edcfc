#!/usr/bin/env python
"""Train a stage of FocalCodec on Libri-Light.

    python recipes/LibriLight/train.py hparams/train/STAGE.yaml --data_folder=D

The YAML chooses the stage; see README.md beside this file.
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml

from speechbrain_focalcodec.data.librilight import prepare_librilight
from speechbrain_focalcodec.training.entry import (
    fit_and_evaluate,
    prepare_manifests,
)
from speechbrain_focalcodec.training.yamls import resolved_file

if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    with resolved_file(hparams_file, overrides) as resolved:
        with open(resolved, encoding="utf-8") as stream:
            hparams = load_hyperpyyaml(stream)
        sb.utils.distributed.ddp_init_group(run_opts)
        sb.create_experiment_directory(
            experiment_directory=hparams["output_folder"],
            hyperparams_to_save=resolved,
        )
    prepare_manifests(prepare_librilight, hparams)
    fit_and_evaluate(hparams, run_opts)
