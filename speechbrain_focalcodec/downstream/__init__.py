"""Tasks on tokens: recognition, classification, synthesis.

A task is a front end (`front_ends.py`: what it sees of speech), a network
(`networks.py`) and a Brain (`asr.py`, `classification.py`, `tts.py`) that adds
a loss, wired by a YAML. See docs/downstream.md.
"""
