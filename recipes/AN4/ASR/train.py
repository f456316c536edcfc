#!/usr/bin/env python
"""Train a recogniser on AN4, from tokens.

    python recipes/AN4/ASR/train.py hparams/downstream/asr_an4.yaml \
        --data_folder=AN4

See ../README.md.
"""

import sys

from speechbrain_focalcodec.data.an4 import prepare_an4
from speechbrain_focalcodec.downstream.entry import main

if __name__ == "__main__":
    main(prepare_an4, sys.argv[1:])
