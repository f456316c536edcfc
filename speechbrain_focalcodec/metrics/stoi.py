"""Short-time objective intelligibility (STOI, ESTOI), by pystoi."""

import warnings
from collections.abc import Sequence

import torch

from speechbrain_focalcodec.errors import AudioError
from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Column,
    Sample,
    ScoreMetric,
)
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Stoi", "stoi"]


class Stoi(ScoreMetric):
    """STOI or ESTOI.

    Arguments
    ---------
    extended : bool
        Compute ESTOI.
    """

    def __init__(self, extended: bool = False):
        import_extra("pystoi", "metrics")
        self.extended = extended
        self.name = "estoi" if extended else "stoi"
        self.columns = (
            Column(self.name, self.name.upper(), "higher", self.name, digits=3),
        )

    def scores(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._measure(sample) for sample in samples]

    def _measure(self, sample: Sample) -> float | None:
        try:
            return stoi(
                sample.original, sample.output, SAMPLE_RATE, self.extended
            )
        except AudioError:
            return None


def stoi(
    reference: torch.Tensor,
    estimate: torch.Tensor,
    sample_rate: int,
    extended: bool = False,
) -> float:
    """Short-time objective intelligibility of `estimate`.

    Needs the extra ``metrics``. Silent frames of the reference are ignored.

    Arguments
    ---------
    reference : torch.Tensor
        Clean speech [T].
    estimate : torch.Tensor
        Speech to measure, aligned with the reference, [T].
    sample_rate : int
        Sample rate of both in Hz; pystoi resamples to 10 kHz.
    extended : bool
        Compute ESTOI, which is more sensitive to modulated noise.

    Returns
    -------
    float
        About 0 (unintelligible) to 1 (equal to the reference).

    Raises
    ------
    AudioError
        If the shapes differ, a sample is not finite, or the reference has less
        than about 0.4 s of speech.

    Example
    -------
    >>> import torch
    >>> sig = torch.randn(16000, generator=torch.manual_seed(0))
    >>> round(stoi(sig, sig, 16000), 3)
    1.0
    """
    pystoi = import_extra("pystoi", "metrics")
    if reference.ndim != 1 or reference.shape != estimate.shape:
        raise AudioError(
            "STOI compares two signals of the same shape [T], not "
            f"{list(reference.shape)} and {list(estimate.shape)}"
        )
    for name, sig in (("reference", reference), ("estimate", estimate)):
        if not torch.isfinite(sig).all():
            raise AudioError(f"The {name} has samples that are not finite")
    if not reference.any():
        raise AudioError("The reference is silent, so it has no STOI")
    short = "The reference has too little speech for STOI (about 0.4 s)"
    if len(reference) < 0.3 * sample_rate:  # pystoi fails on a few samples
        raise AudioError(short)
    with warnings.catch_warnings():
        # pystoi warns and returns 1e-5, which would distort a mean.
        warnings.filterwarnings("error", message="Not enough STFT frames")
        try:
            value = pystoi.stoi(
                reference.detach().cpu().numpy(),
                estimate.detach().cpu().numpy(),
                sample_rate,
                extended=extended,
            )
        except RuntimeWarning as warning:
            raise AudioError(short) from warning
    return float(value)
