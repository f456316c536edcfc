"""Plans the windows over long utterances.

The windows of an utterance depend only on its length, not on its batch.
:mod:`speechbrain_focalcodec.long_audio.passes` runs them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONTEXT",
    "WHOLE",
    "WINDOW",
    "Sizes",
    "Window",
    "count_steps",
    "fit_sizes",
    "plan_windows",
]

# Seconds of a window, and of its context on each side. From docs/speed.md:
# longer windows are closer to a single pass and as fast; more context changes
# little.
WINDOW = 60.0
CONTEXT = 2.0

# Steps: longer than any utterance.
WHOLE = 1 << 62


@dataclass(frozen=True)
class Window:
    """A part of an utterance, in steps.

    Arguments
    ---------
    start, stop : int
        The steps that the model sees.
    keep_start, keep_stop : int
        The steps that are kept of them.
    row : int
        Row of the utterance in the batch.
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int
    row: int = 0

    def kept(self, hop_length: int = 1) -> slice:
        """Slice of the kept steps in the window's output, `hop_length` per
        step.
        """
        return slice(
            (self.keep_start - self.start) * hop_length,
            (self.keep_stop - self.start) * hop_length,
        )


def plan_windows(
    num_steps: int,
    size: int,
    left: int = 0,
    right: int = 0,
    unit: int = 1,
    row: int = 0,
) -> list[Window]:
    """Cut an utterance into overlapping windows.

    There are as few as possible, about equally long; the first and the last
    keep everything up to the utterance's ends.

    Arguments
    ---------
    num_steps : int
        Length of the utterance.
    size : int
        Largest length of a window.
    left, right : int
        Smallest context before and after the kept steps.
    unit : int
        Windows start at multiples of it.
    row : int
        Row of the utterance in the batch.

    Returns
    -------
    list of Window
        In order; the kept parts tile the utterance.

    Raises
    ------
    ValueError
        If a window has no room for context and one unit.

    Example
    -------
    >>> [(w.start, w.keep_start) for w in plan_windows(25, 10, 2, 2)]
    [(0, 0), (6, 8), (12, 14), (18, 20)]
    """
    if size < left + right + unit:
        raise ValueError(
            f"size must be at least {left + right + unit} steps, the context "
            f"on both sides and what is kept, got {size}"
        )
    if num_steps <= size:
        return [Window(0, num_steps, 0, num_steps, row)]
    inner = num_steps - left - right
    count = -(-inner // ((size - left - right) // unit * unit))
    hop = -(-inner // (count * unit)) * unit
    windows = []
    for i in range(count):
        first, last = i == 0, i == count - 1
        start = i * hop
        keep_stop = num_steps if last else start + left + hop
        windows.append(
            Window(
                start,
                num_steps if last else keep_stop + right,
                0 if first else start + left,
                keep_stop,
                row,
            )
        )
    return windows


@dataclass(frozen=True)
class Sizes:
    """Window, context and unit in steps, see :func:`plan_windows`."""

    size: int
    left: int = 0
    right: int = 0
    unit: int = 1

    def plan(self, num_steps: Sequence[int]) -> list[Window]:
        """All windows of a batch, utterance by utterance."""
        return [
            window
            for row, num in enumerate(num_steps)
            for window in plan_windows(
                num, self.size, self.left, self.right, self.unit, row
            )
        ]


def count_steps(name: str, seconds: Any, rate: float) -> float:
    """Steps, not rounded, in `seconds`; ValueError if that is no duration."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(
            f"{name} must be a number of seconds, not negative, got {seconds!r}"
        )
    return seconds * rate


def fit_sizes(
    window: float | None,
    rate: float,
    left: int = 0,
    right: int = 0,
    unit: int = 1,
    kept: int = 1,
) -> Sizes:
    """Window sizes in steps for a window in seconds (unlimited if None).

    `rate` is in steps per second; `left`, `right`, `unit` as in
    :func:`plan_windows`. Windows are lengthened to keep at least `kept` steps.
    Raises ValueError if `window` is no number of seconds.
    """
    if window is None:
        return Sizes(WHOLE)
    size = int(count_steps("window", window, rate))
    return Sizes(max(size, left + right + max(unit, kept)), left, right, unit)
