"""Runs the command line as ``python -m speechbrain_focalcodec.cli``."""

from speechbrain_focalcodec.cli import app

app(prog_name="focalcodec")
