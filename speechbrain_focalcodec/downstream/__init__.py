"""Downstream tasks on tokens: recognition, classification and synthesis.

A YAML composes a task of a front end (`front_ends.py`), a network
(`networks.py`) and a Brain (`asr.py`, `classification.py`, `tts.py`). See
docs/downstream.md.
"""
