"""Confidence intervals for means over utterances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "bootstrap_ratio"]


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % bootstrap interval.

    Arguments
    ---------
    value : float
        The value over all utterances.
    low : float
        Lower end of the interval.
    high : float
        Upper end of the interval.
    """

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

    Whole utterances are drawn with replacement (percentile bootstrap), so
    edits and words of one utterance stay together.

    Arguments
    ---------
    numerators : Sequence[float]
        One value an utterance: a score, or the number of word errors.
    denominators : Sequence[float], optional
        One value an utterance, such as its number of words; 1 each by
        default, which gives the mean.
    resamples : int
        Number of draws.
    seed : int
        Seed of the draws.

    Returns
    -------
    Estimate
        The ratio and its interval.

    Raises
    ------
    ValueError
        When there is no utterance, the lengths differ, or the denominators
        sum to 0.

    Example
    -------
    >>> bootstrap_ratio([0.5, 0.5, 0.5])
    Estimate(value=0.5, low=0.5, high=0.5)
    >>> bootstrap_ratio([1, 0, 2], [10, 10, 10]).value
    0.1
    """
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
        raise ValueError("Nothing to average: the denominators sum to 0")
    drawn = np.random.default_rng(seed).integers(
        len(above), size=(resamples, len(above))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    # A draw of utterances without a word has no ratio.
    low, high = np.nanpercentile(ratios, [2.5, 97.5])
    return Estimate(float(above.sum() / below.sum()), float(low), float(high))
