#!/usr/bin/env python
"""Train a stage of FocalCodec on Libri-Light.

    python recipes/LibriLight/train.py hparams/train/STAGE.yaml --data_folder=D

The YAML chooses the stage; see README.md beside this file.
"""

import sys

from speechbrain_focalcodec.data.librilight import prepare_librilight
from speechbrain_focalcodec.training.entry import main

if __name__ == "__main__":
    main(prepare_librilight, sys.argv[1:])
