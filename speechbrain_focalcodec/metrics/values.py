"""Checks of signals and of measured values."""

import math
from typing import Any

import torch

__all__ = ["as_figure", "is_measurable"]


def is_measurable(*sigs: torch.Tensor) -> bool:
    """True if all signals are finite and not empty."""
    return all(len(sig) and bool(sig.isfinite().all()) for sig in sigs)


def as_figure(value: Any) -> float | None:
    """A number as float; None for NaN and infinity, which would spoil means."""
    value = float(value)
    return value if math.isfinite(value) else None
