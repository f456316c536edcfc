"""Errors of fundamental frequency (F0) and voicing, by WORLD (pyworld)."""

from collections.abc import Sequence

import numpy as np
import torch

from speechbrain_focalcodec.extras import import_extra
from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Column,
    Metric,
    Row,
    Sample,
)
from speechbrain_focalcodec.metrics.originals import Originals
from speechbrain_focalcodec.metrics.values import as_figure, is_measurable

__all__ = ["Pitch"]

# Milliseconds between values of F0, and the range searched (Hz).
PERIOD = 10.0
LOWEST, HIGHEST = 60.0, 600.0


class Pitch(Metric):
    """How far F0 is off, and in how many frames voicing is.

    F0 is WORLD's (DIO, refined by StoneMask), every 10 ms from 60 to 600 Hz.
    The error is the root mean square, in cents, over an utterance's frames
    that are voiced in both; the summary has its mean over utterances. The
    voicing error is the share of frames that are voiced in one of both alone.

    Needs the extra ``metrics``.

    Example
    -------
    >>> time = torch.arange(16000) / 16000
    >>> low, high = ((torch.arange(1, 9)[:, None] * f * 6.2832 * time).cos()
    ...     .mean(0) for f in (200, 202))
    >>> [row] = Pitch()([Sample("a", low, high)])
    >>> round(row["f0_error"])  # 1200 * log2(202 / 200)
    17
    """

    name = "pitch"
    columns = (
        Column("f0_error", "F0 error (cents)", "lower", "f0_error", digits=1),
        Column(
            "voicing_error",
            "Voicing error (%)",
            "lower",
            "voicing_errors",
            "frames",
            100,
            1,
        ),
    )

    def __init__(self):
        self.world = import_extra("pyworld", "metrics")
        self.originals = Originals(self._estimate)

    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        return [self._measure(sample) for sample in samples]

    def _measure(self, sample: Sample) -> Row:
        row: Row = {"f0_error": None, "voicing_errors": None, "frames": None}
        if not is_measurable(sample.original, sample.output):
            return row
        [original] = self.originals([sample.id], [sample.original])
        [output] = self._estimate([sample.output])
        row["voicing_errors"] = int(((original > 0) != (output > 0)).sum())
        row["frames"] = len(original)
        both = (original > 0) & (output > 0)
        if both.any():
            cents = 1200 * np.log2(output[both] / original[both])
            row["f0_error"] = as_figure(np.sqrt(np.mean(cents**2)))
        return row

    def _estimate(self, sigs: list[torch.Tensor]) -> list[np.ndarray]:
        """F0 of each, in Hz; 0 where unvoiced."""
        tracks = []
        for sig in sigs:
            wav = sig.double().numpy()
            f0, times = self.world.dio(
                wav,
                SAMPLE_RATE,
                f0_floor=LOWEST,
                f0_ceil=HIGHEST,
                frame_period=PERIOD,
            )
            f0 = self.world.stonemask(wav, f0, times, SAMPLE_RATE)
            tracks.append(f0.astype(np.float32))
        return tracks
