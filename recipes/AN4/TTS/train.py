#!/usr/bin/env python
"""Train a small synthesiser on AN4 and a part of LibriSpeech.

    python recipes/AN4/TTS/train.py hparams/downstream/tts_small.yaml \
        --data_folder=DATA

DATA holds AN4/ and LibriSpeech/. See ../README.md.
"""

import sys

from speechbrain_focalcodec.data.corpora import prepare_corpora
from speechbrain_focalcodec.downstream.entry import main

if __name__ == "__main__":
    main(prepare_corpora, sys.argv[1:])
