"""Where long utterances are cut: windows, planned from lengths alone.

An utterance's windows follow from its own length, whatever else is in its
batch. :mod:`speechbrain_focalcodec.long_audio.passes` runs them.
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

# Seconds that are processed at once, and of them what is seen but not kept
# on each side. From the curve in docs/speed.md: longer windows differ less from
# a single pass at no cost in time, more context hardly changes it.
WINDOW = 60.0
CONTEXT = 2.0

# Steps: longer than any utterance.
WHOLE = 1 << 62


@dataclass(frozen=True)
class Window:
    """Part of an utterance, in steps of its plan, and what is kept of it.

    Arguments
    ---------
    start, stop : int
        What is seen.
    keep_start, keep_stop : int
        What is kept, within it.
    row : int
        The utterance's place in the batch.

    Example
    -------
    >>> Window(100, 200, 110, 190).kept(320)
    slice(3200, 28800, None)
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int
    row: int = 0

    def kept(self, hop_length: int = 1) -> slice:
        """What is kept of what the window gives.

        Arguments
        ---------
        hop_length : int
            What a step gives: frames, tokens or samples.

        Returns
        -------
        slice
            Since the window's start.
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

    As few as do, and about equally long; the first and the last keep all up
    to the utterance's ends.

    Arguments
    ---------
    num_steps : int
        Length of the utterance.
    size : int
        Length of a window, at most.
    left, right : int
        What a window sees before and after what is kept of it, at least.
    unit : int
        Windows start at multiples of it.
    row : int
        The utterance's place in the batch.

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
    """How utterances are cut, in steps: see :func:`plan_windows`.

    Arguments
    ---------
    size : int
        Length of a window.
    left, right : int
        Its context.
    unit : int
        Windows start at multiples of it.

    Example
    -------
    >>> [w.stop for w in Sizes(100, 10, 10).plan([150, 30])]
    [85, 150, 30]
    """

    size: int
    left: int = 0
    right: int = 0
    unit: int = 1

    def plan(self, num_steps: Sequence[int]) -> list[Window]:
        """All windows of a batch.

        Arguments
        ---------
        num_steps : sequence of int
            Length of each utterance.

        Returns
        -------
        list of Window
            Utterance by utterance.
        """
        return [
            window
            for row, num in enumerate(num_steps)
            for window in plan_windows(
                num, self.size, self.left, self.right, self.unit, row
            )
        ]


def count_steps(name: str, seconds: Any, rate: float) -> float:
    """Steps in a number of seconds that a caller gave.

    Arguments
    ---------
    name : str
        The argument's name, for the message.
    seconds : float
        What was given.
    rate : float
        Steps a second.

    Returns
    -------
    float
        Steps, not rounded.

    Raises
    ------
    ValueError
        If `seconds` is no number of seconds.

    Example
    -------
    >>> count_steps("window", 0.5, 50.0)
    25.0
    """
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
    """Windows of a number of seconds, longer where they must be.

    Arguments
    ---------
    window : float, optional
        Length of a window (s); None for as long as it takes.
    rate : float
        Steps a second.
    left, right : int
        What a window sees before and after what is kept of it (steps).
    unit : int
        Windows start at multiples of it.
    kept : int
        What is kept of a window, at least (steps).

    Returns
    -------
    Sizes
        In steps.

    Raises
    ------
    ValueError
        If `window` is no number of seconds.

    Example
    -------
    >>> fit_sizes(30.0, 50.0, 8, 8)
    Sizes(size=1500, left=8, right=8, unit=1)
    >>> fit_sizes(0.0, 50.0, 8, 8, kept=16).size
    32
    """
    if window is None:
        return Sizes(WHOLE)
    size = int(count_steps("window", window, rate))
    return Sizes(max(size, left + right + max(unit, kept)), left, right, unit)
