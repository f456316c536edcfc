#!/usr/bin/env python
"""Train a stage of FocalCodec on LibriTTS.

    python recipes/LibriTTS/train.py hparams/train/STAGE.yaml --data_folder=D

The YAML chooses the stage; see README.md beside this file.
"""

import sys

from speechbrain_focalcodec.data.libritts import prepare_libritts
from speechbrain_focalcodec.training.entry import main

if __name__ == "__main__":
    main(prepare_libritts, sys.argv[1:])
