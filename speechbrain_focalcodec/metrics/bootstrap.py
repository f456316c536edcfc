"""Bootstrap confidence intervals for means over utterances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "bootstrap_difference", "bootstrap_ratio"]


@dataclass(frozen=True)
class Estimate:
    """A value over all utterances, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Ratio of two sums over utterances, with its 95 % interval.

    Percentile bootstrap: whole utterances are drawn with replacement, so the
    errors and words of an utterance stay together. Denominators are 1 by
    default, which makes the ratio a mean. Raises a ValueError if there are no
    utterances, the lengths differ, or the denominators sum to 0.
    """
    above, below = _as_arrays(numerators, denominators)
    drawn = _draw(len(above), resamples, seed)
    return _estimate(
        above.sum() / below.sum(), _ratios(above[drawn], below[drawn])
    )


def bootstrap_difference(
    first: tuple[Sequence[float], Sequence[float] | None],
    second: tuple[Sequence[float], Sequence[float] | None],
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """First ratio minus the second over the same utterances, with its interval.

    Paired bootstrap: each draw takes the same utterances for both ratios, so
    variation among utterances does not widen the interval. Both are numerators
    and denominators of :func:`bootstrap_ratio`, with utterances in one order.
    """
    above, below = _as_arrays(*first)
    above2, below2 = _as_arrays(*second)
    if len(above) != len(above2):
        raise ValueError(f"{len(above)} utterances but {len(above2)}")
    drawn = _draw(len(above), resamples, seed)
    return _estimate(
        above.sum() / below.sum() - above2.sum() / below2.sum(),
        _ratios(above[drawn], below[drawn])
        - _ratios(above2[drawn], below2[drawn]),
    )


def _as_arrays(
    numerators: Sequence[float], denominators: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    above = np.asarray(numerators, dtype=np.float64)
    below = (
        np.ones_like(above)
        if denominators is None
        else np.asarray(denominators, dtype=np.float64)
    )
    if above.ndim != 1 or above.shape != below.shape:
        raise ValueError(
            f"{above.shape} numerators but {below.shape} denominators"
        )
    if below.sum() == 0:
        raise ValueError("The denominators sum to 0")
    return above, below


def _draw(utterances: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        utterances, size=(resamples, utterances)
    )


def _ratios(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = above.sum(axis=1) / below.sum(axis=1)
    # A draw without any words has no ratio.
    return np.where(np.isfinite(ratios), ratios, np.nan)


def _estimate(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
