"""Encoding and decoding audio of any length in bounded memory."""
