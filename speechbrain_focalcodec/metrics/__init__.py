"""Measures of resynthesised speech and of converted voices.

:mod:`~speechbrain_focalcodec.metrics.registry` makes metrics by name. Their
libraries are extras (``metrics``, ``pesq``, ``mos``, ``speaker``, ``whisper``
and ``paper``), so each is imported from its own module when it is asked for.
"""
