"""The command line ``focalcodec``: one registry of typed functions."""

from speechbrain_focalcodec.cli.main import app

__all__ = ["app"]
