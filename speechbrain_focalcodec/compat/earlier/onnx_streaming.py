"""Moved to :mod:`speechbrain_focalcodec.onnx.sessions`."""

from speechbrain_focalcodec.onnx.sessions import *  # noqa: F403
