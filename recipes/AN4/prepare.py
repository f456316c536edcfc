"""Prepares AN4: writes a manifest for each split.

``python recipes/AN4/prepare.py DATA SAVE --splits an4_clstk an4test_clstk``

Training does the same by itself; this is for preparing beforehand.
"""

from speechbrain_focalcodec.data.command import run_preparation
from speechbrain_focalcodec.data.corpora import prepare_an4

if __name__ == "__main__":
    run_preparation(prepare_an4)
