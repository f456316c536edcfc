#!/usr/bin/env python
"""Train a synthesiser on LibriTTS: text and a voice to tokens.

    python recipes/LibriTTS/TTS/train.py hparams/downstream/tts.yaml \
        --data_folder=LibriTTS

See ../README.md.
"""

import sys

from speechbrain_focalcodec.data.libritts import prepare_libritts
from speechbrain_focalcodec.downstream.entry import main

if __name__ == "__main__":
    main(prepare_libritts, sys.argv[1:])
