"""Measures of resynthesised speech.

Their libraries are extras (``metrics`` for STOI, ``whisper`` for word error
rates), so each measure is imported from its own module.
"""
