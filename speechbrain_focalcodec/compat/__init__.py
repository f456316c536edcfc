"""The interface of the published `focalcodec` package, on top of this one.

Code for `focalcodec` (v0.0.2) runs with

    import speechbrain_focalcodec.compat as focalcodec

docs/migration.md compares both.
"""

from speechbrain_focalcodec.compat.codec import FocalCodec

__all__ = ["FocalCodec", "__version__"]

__version__ = FocalCodec.__version__
