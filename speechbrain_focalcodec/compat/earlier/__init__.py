"""Import paths of version 0.1.0 that its documentation named.

The package's search path ends here, so that
``speechbrain_focalcodec.stream_pool`` is found still.
"""
