"""Prepares AN4: writes a manifest for each split.

``python recipes/AN4/prepare.py DATA SAVE --splits an4_clstk an4test_clstk``

Training does the same by itself; this is for preparing beforehand.
"""

from speechbrain_focalcodec.data.an4 import prepare_an4
from speechbrain_focalcodec.data.command import run_preparation

if __name__ == "__main__":
    run_preparation(prepare_an4)
