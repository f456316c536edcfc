"""Prepares Libri-Light: writes a manifest for each split.

``python recipes/LibriLight/prepare.py DATA SAVE --splits small``

Training does the same by itself; this is for preparing beforehand.
"""

from speechbrain_focalcodec.data.command import run_preparation
from speechbrain_focalcodec.data.corpora import prepare_librilight

if __name__ == "__main__":
    run_preparation(prepare_librilight)
