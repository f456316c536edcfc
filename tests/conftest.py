"""What all tests need."""

from speechbrain.utils.importutils import LazyModule

# SpeechBrain leaves lazy modules in sys.modules that import an optional
# library (k2, ...) when asked for any attribute, and fail without it.
# Hypothesis asks every module for its file.
LazyModule.__file__ = None
