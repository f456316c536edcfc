"""Moved to :mod:`speechbrain_focalcodec.data.corpora`."""

from speechbrain_focalcodec.data.corpora import *  # noqa: F403
