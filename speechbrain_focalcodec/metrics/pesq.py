"""Perceptual evaluation of speech quality (wideband PESQ), by pesq."""

import math
from collections.abc import Sequence

import torch

from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Column,
    Sample,
    ScoreMetric,
)
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Pesq"]

# Samples (20 s). With more than 50 segments of speech (at least 0.2 s each,
# and as much between them) the library crashes the process.
LONGEST = 20 * SAMPLE_RATE


class Pesq(ScoreMetric):
    """Wideband PESQ (ITU-T P.862.2), 1.04 to 4.64.

    Needs the extra ``pesq``. The value is None if the utterance is shorter
    than 0.25 s or the library finds no speech. Utterances above 20 s are split
    into equal parts of at most 20 s and their values averaged, because of a
    limit of the library.
    """

    name = "pesq"
    columns = (Column("pesq", "PESQ-wb", "higher", "pesq"),)

    def __init__(self):
        self.pesq = import_extra("pesq", "pesq")

    def scores(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._measure(sample) for sample in samples]

    def _measure(self, sample: Sample) -> float | None:
        sigs = sample.original, sample.output
        parts = -(-len(sample.original) // LONGEST)
        scores = [
            score
            for original, output in zip(
                *(sig.tensor_split(parts) for sig in sigs), strict=True
            )
            if (score := self._score(original, output)) is not None
        ]
        return sum(scores) / len(scores) if scores else None

    def _score(
        self, original: torch.Tensor, output: torch.Tensor
    ) -> float | None:
        # The library divides by the peak.
        if not original.any() or not output.any():
            return None
        try:
            score = self.pesq.pesq(
                SAMPLE_RATE, original.numpy(), output.numpy(), "wb"
            )
        except (
            self.pesq.NoUtterancesError,
            self.pesq.BufferTooShortError,
            ValueError,  # from NaN, if a signal is far too quiet
        ):
            return None
        return score if math.isfinite(score) else None
