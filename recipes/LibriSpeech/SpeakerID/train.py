#!/usr/bin/env python
"""Train the identification of speakers on LibriSpeech, from tokens.

    python recipes/LibriSpeech/SpeakerID/train.py \
        hparams/downstream/speaker_id.yaml --data_folder=LibriSpeech

See ../README.md.
"""

import sys

from speechbrain_focalcodec.data.librispeech import prepare_librispeech
from speechbrain_focalcodec.downstream.entry import main

if __name__ == "__main__":
    main(prepare_librispeech, sys.argv[1:])
