"""Moved to :mod:`speechbrain_focalcodec.tokens.files`."""

from speechbrain_focalcodec.tokens.files import *  # noqa: F403
