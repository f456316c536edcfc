"""Checks whether audio files are complete, one module per format."""
