"""Formats of audio files: whether a file is whole, one module a format."""
