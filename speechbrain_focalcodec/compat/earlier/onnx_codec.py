"""Moved to :mod:`speechbrain_focalcodec.onnx.runtime`."""

from speechbrain_focalcodec.onnx.runtime import *  # noqa: F403
