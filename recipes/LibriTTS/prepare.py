"""Prepares LibriTTS: writes a manifest for each split.

``python recipes/LibriTTS/prepare.py DATA SAVE --splits dev-clean``

Training does the same by itself; this is for preparing beforehand.
"""

from speechbrain_focalcodec.data.command import run_preparation
from speechbrain_focalcodec.data.corpora import prepare_libritts

if __name__ == "__main__":
    run_preparation(prepare_libritts)
