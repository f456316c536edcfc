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

# The range searched (Hz).
LOWEST, HIGHEST = 65.0, 500.0
# SwiftF0's confidence is calibrated so that frames from here on are voiced.
VOICED = 0.5
# What it scales quiet recordings to: it hears less voice in them.
PEAK = 0.5
# A value that is further off than this share is no inexact one but another.
GROSS = 0.2


class Pitch(Metric):
    """How far F0 is off, how often it is another one, and voicing.

    F0 is that of SwiftF0, a small network that comes with the library, every
    16 ms from 65 to 500 Hz. It goes by harmonics: a codec that keeps nothing
    below 300 Hz has the same pitch, as listeners hear it. Between its classes,
    70 cents apart, it interpolates: steady tones come out within some 10 cents.
    Each signal is brought to the same peak first, so that its volume does not
    count.

    Of frames that are voiced in original and output, the gross pitch error is
    the share in which F0 is off by more than 20 %, and the F0 error is the
    root mean square of the others, in cents; the summary has its mean over
    utterances. The voicing error is the share of all frames that are voiced
    in one of both alone.

    Needs the extra ``metrics``.

    Example
    -------
    >>> time = torch.arange(16000) / 16000
    >>> low, high = ((torch.arange(1, 9)[:, None] * f * 6.2832 * time).cos()
    ...     .mean(0) for f in (200, 206))
    >>> [row] = Pitch()([Sample("a", low, high)])
    >>> abs(row["f0_error"] - 51) < 8  # 1200 * log2(206 / 200)
    True
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
        # One thread is fast enough, and there are no others to disturb.
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
        """F0 of each, in Hz; 0 where unvoiced."""
        tracks = []
        for sig in sigs:
            peak = sig.abs().max()
            # Not by a factor, which can be infinite.
            level = sig / peak * PEAK if peak else sig
            track = self.tracker.detect(
                level.numpy(), SAMPLE_RATE, LOWEST, HIGHEST
            )
            is_voiced = track.confidence >= VOICED
            f0 = np.where(is_voiced, track.pitch_hz, 0.0)
            tracks.append(f0.astype(np.float32))
        return tracks
