"""The interface of the published `focalcodec` package, on this one.

Code that was written for `focalcodec` (v0.0.2) runs with

    import speechbrain_focalcodec.compat as focalcodec

docs/migration.md shows both side by side, and what differs.
"""

from speechbrain_focalcodec.compat.codec import FocalCodec

__all__ = ["FocalCodec", "__version__"]

# Of the interface.
__version__ = FocalCodec.__version__
