"""Moved to :mod:`speechbrain_focalcodec.streaming.latency`."""

from speechbrain_focalcodec.streaming.latency import *  # noqa: F403
