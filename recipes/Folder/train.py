#!/usr/bin/env python
"""Train a stage of FocalCodec on any folder of audio.

    python recipes/Folder/train.py hparams/train/STAGE.yaml --data_folder=D

The YAML chooses the stage; see README.md beside this file.
"""

import sys

from speechbrain_focalcodec.data.folder import prepare_folder
from speechbrain_focalcodec.training.entry import main

if __name__ == "__main__":
    main(prepare_folder, sys.argv[1:])
