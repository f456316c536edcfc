"""Moved to :mod:`speechbrain_focalcodec.onnx.export`."""

from speechbrain_focalcodec.onnx.export import *  # noqa: F403
