"""The command line ``focalcodec``."""

from speechbrain_focalcodec.cli.main import app

__all__ = ["app"]
