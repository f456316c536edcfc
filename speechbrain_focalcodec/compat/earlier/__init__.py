"""Import paths of version 0.1.0 that its documentation named.

This folder is the last entry of the package's search path, so
``speechbrain_focalcodec.stream_pool`` still works.
"""
