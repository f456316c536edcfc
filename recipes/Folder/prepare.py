"""Prepares any folder of audio: writes a manifest for each split.

``python recipes/Folder/prepare.py DATA SAVE --splits all``

Training does the same by itself; this is for preparing beforehand.
"""

from speechbrain_focalcodec.data.command import run_preparation
from speechbrain_focalcodec.data.corpora import prepare_folder

if __name__ == "__main__":
    run_preparation(prepare_folder)
