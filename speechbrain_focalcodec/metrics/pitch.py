"""Errors of fundamental frequency (F0) and voicing, by SwiftF0."""

from collections.abc import Sequence

import numpy as np
import torch

from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Column,
    Metric,
    Row,
    Sample,
)
from speechbrain_focalcodec.metrics.originals import Originals
from speechbrain_focalcodec.metrics.values import as_figure, is_measurable
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Pitch"]

# Range of F0 in Hz.
LOWEST, HIGHEST = 65.0, 500.0
# Minimum confidence of voiced frames, as calibrated by SwiftF0's author.
VOICED = 0.5
# Peak that signals are scaled to: SwiftF0 misses voice in quiet recordings.
PEAK = 0.5
# Minimum relative deviation of a gross error.
GROSS = 0.2


class Pitch(Metric):
    """F0 error, gross pitch error and voicing error.

    SwiftF0 estimates F0 every 16 ms from 65 to 500 Hz. It uses harmonics, so a
    codec without energy below 300 Hz keeps its pitch, as for listeners. Steady
    tones are within about 10 cents. All signals are scaled to the same peak.

    Over frames that are voiced in original and output, the gross pitch error
    is the share with F0 more than 20 % off, and the F0 error is the root mean
    square of the others in cents, averaged over utterances. The voicing error
    is the share of all frames that are voiced in only one of the two.

    Needs the extra ``metrics``.
    """

    name = "pitch"
    fingerprint = f"SwiftF0 {LOWEST:g}-{HIGHEST:g}"
    columns = (
        Column("f0_error", "F0 error (cents)", "lower", "f0_error", digits=1),
        Column(
            "gross_pitch_error",
            "Gross pitch error (%)",
            "lower",
            "gross_errors",
            "voiced_frames",
            100,
            1,
        ),
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
        library = import_extra("swift_f0", "metrics")
        # One thread is fast enough.
        self.tracker = library.SwiftF0(threads=1)
        self.originals = Originals(self._estimate)

    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        return [self._measure(sample) for sample in samples]

    def _measure(self, sample: Sample) -> Row:
        row: Row = dict.fromkeys(
            ("f0_error", "gross_errors", "voiced_frames")
            + ("voicing_errors", "frames")
        )
        if not is_measurable(sample.original, sample.output):
            return row
        [original] = self.originals([sample.id], [sample.original])
        [output] = self._estimate([sample.output])
        both = (original > 0) & (output > 0)
        ratio = output[both] / original[both]
        gross = abs(ratio - 1) > GROSS
        row["gross_errors"] = int(gross.sum())
        row["voiced_frames"] = len(ratio)
        row["voicing_errors"] = int(((original > 0) != (output > 0)).sum())
        row["frames"] = len(original)
        if not gross.all():
            cents = 1200 * np.log2(ratio[~gross])
            row["f0_error"] = as_figure(np.sqrt(np.mean(cents**2)))
        return row

    def _estimate(self, sigs: list[torch.Tensor]) -> list[np.ndarray]:
        """F0 of each signal in Hz; 0 if unvoiced."""
        tracks = []
        for sig in sigs:
            peak = sig.abs().max()
            # A factor PEAK / peak could be infinite.
            level = sig / peak * PEAK if peak else sig
            track = self.tracker.detect(
                level.numpy(), SAMPLE_RATE, LOWEST, HIGHEST
            )
            is_voiced = track.confidence >= VOICED
            f0 = np.where(is_voiced, track.pitch_hz, 0.0)
            tracks.append(f0.astype(np.float32))
        return tracks
