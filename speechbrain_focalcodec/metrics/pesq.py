"""Perceptual evaluation of speech quality (PESQ, wideband), by pesq."""

from collections.abc import Sequence

import torch

from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Column,
    Metric,
    Row,
    Sample,
)
from speechbrain_focalcodec.metrics.values import as_figure, is_measurable
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Pesq"]

# Samples (20 s). The library keeps 50 stretches of speech of at least 0.2 s,
# with pauses as long, and the process dies when there are more.
LONGEST = 20 * SAMPLE_RATE


class Pesq(Metric):
    """Wideband PESQ (ITU-T P.862.2), 1.04 to 4.64.

    Needs the extra ``pesq``. It has no figure for an utterance in which the
    library finds no speech, or of less than a quarter of a second. Of one of
    more than 20 s, equal parts of at most 20 s are judged, and their mean is
    taken: the library cannot take any length.

    Example
    -------
    >>> Pesq()([Sample("a", torch.zeros(16000), torch.zeros(16000))])
    [{'pesq': None}]
    """

    name = "pesq"
    columns = (Column("pesq", "PESQ-wb", "higher", "pesq"),)

    def __init__(self):
        self.pesq = import_extra("pesq", "pesq")

    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        return [{"pesq": self._measure(sample)} for sample in samples]

    def _measure(self, sample: Sample) -> float | None:
        sigs = sample.original, sample.output
        if not is_measurable(*sigs):
            return None
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
            ValueError,  # from NaN, where a signal is far too quiet
        ):
            return None
        return as_figure(score)
