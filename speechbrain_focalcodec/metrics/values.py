"""What can be measured, and what is a figure."""

import math
from typing import Any

import torch

__all__ = ["as_figure", "is_measurable"]


def is_measurable(*sigs: torch.Tensor) -> bool:
    """Whether signals have samples, all of them finite.

    Arguments
    ---------
    *sigs : torch.Tensor
        Waveforms [T].

    Returns
    -------
    bool
        False when any has none.

    Example
    -------
    >>> is_measurable(torch.zeros(4)), is_measurable(torch.zeros(0))
    (True, False)
    """
    return all(len(sig) and bool(sig.isfinite().all()) for sig in sigs)


def as_figure(value: Any) -> float | None:
    """Make a plain number of what a library gave.

    Arguments
    ---------
    value : object
        A number of any kind.

    Returns
    -------
    float or None
        ``None`` for NaN and infinities, which would spoil a mean.

    Example
    -------
    >>> as_figure(torch.tensor(0.5)), as_figure(float("nan"))
    (0.5, None)
    """
    value = float(value)
    return value if math.isfinite(value) else None
