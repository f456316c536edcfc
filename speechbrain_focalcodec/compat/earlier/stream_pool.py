"""Moved to :mod:`speechbrain_focalcodec.streaming.pool`."""

from speechbrain_focalcodec.streaming.pool import *  # noqa: F403
