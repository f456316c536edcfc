#!/usr/bin/env python
"""Train a stage of FocalCodec on LibriSpeech.

    python recipes/LibriSpeech/train.py hparams/train/STAGE.yaml --data_folder=D

The YAML chooses the stage; see README.md beside this file.
"""

import sys

from speechbrain_focalcodec.data.librispeech import prepare_librispeech
from speechbrain_focalcodec.training.entry import main

if __name__ == "__main__":
    main(prepare_librispeech, sys.argv[1:])
