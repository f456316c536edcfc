"""Codecs that an evaluation can set side by side."""
