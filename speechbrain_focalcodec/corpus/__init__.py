"""Corpora of tokens: made once from audio, read by whoever trains on them."""
