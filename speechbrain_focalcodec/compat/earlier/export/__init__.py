"""Moved to :mod:`speechbrain_focalcodec.onnx`."""
