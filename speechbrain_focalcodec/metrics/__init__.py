"""Metrics for resynthesised and converted speech.

:mod:`~speechbrain_focalcodec.metrics.registry` makes metrics by name. Each
metric's module imports its library from an extra (``metrics``, ``pesq``,
``mos``, ``speaker``, ``whisper`` or ``paper``) only when it is used.
"""
