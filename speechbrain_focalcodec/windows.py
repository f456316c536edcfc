"""Where long utterances are cut: windows, planned from lengths alone.

An utterance's windows follow from its own length, whatever else is in its
batch. :mod:`speechbrain_focalcodec.windowed` runs them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = [
    "CONTEXT",
    "WINDOW",
    "Sizes",
    "Window",
    "decode_sizes",
    "encode_sizes",
    "plan_windows",
]

# Seconds that are processed at once, and of them what is seen but not kept
# on each side. Measured: see the README's table of differing tokens.
WINDOW = 30.0
CONTEXT = 2.0

# Tokens: longer than any utterance.
WHOLE = 1 << 62


@dataclass(frozen=True)
class Window:
    """Part of an utterance, in tokens, and what is kept of it.

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
        """What is kept of the window's own steps.

        Arguments
        ---------
        hop_length : int
            Steps a token.

        Returns
        -------
        slice
            Steps since the window's start.
        """
        return slice(
            (self.keep_start - self.start) * hop_length,
            (self.keep_stop - self.start) * hop_length,
        )


def plan_windows(
    num_tokens: int,
    size: int,
    left: int = 0,
    right: int = 0,
    unit: int = 1,
    row: int = 0,
) -> list[Window]:
    """Cut an utterance into overlapping windows.

    The last one is moved back to be as long as the others; the first and the
    last keep all up to the utterance's ends.

    Arguments
    ---------
    num_tokens : int
        Length of the utterance.
    size : int
        Length of a window (tokens).
    left, right : int
        What a window sees before and after what is kept of it (tokens), at
        least.
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
    [(0, 0), (6, 8), (12, 14), (15, 20)]
    """
    if size < left + right + unit:
        raise ValueError(
            f"size must be at least {left + right + unit} tokens, the context "
            f"on both sides and what is kept, got {size}"
        )
    hop = (size - left - right) // unit * unit
    windows, start, kept = [], 0, 0
    while start + size < num_tokens:
        stop = start + size
        windows.append(Window(start, stop, kept, stop - right, row))
        start, kept = start + hop, stop - right
    if windows:
        start = min(start, -(-(num_tokens - size) // unit) * unit)
    windows.append(Window(start, num_tokens, kept, num_tokens, row))
    return windows


# Sizes in tokens, from seconds


@dataclass(frozen=True)
class Sizes:
    """How a codec cuts utterances, in tokens: see :func:`plan_windows`.

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
    [100, 150, 30]
    """

    size: int
    left: int = 0
    right: int = 0
    unit: int = 1

    def plan(self, num_tokens: Sequence[int]) -> list[Window]:
        """All windows of a batch.

        Arguments
        ---------
        num_tokens : sequence of int
            Length of each utterance.

        Returns
        -------
        list of Window
            Utterance by utterance.
        """
        return [
            window
            for row, num in enumerate(num_tokens)
            for window in plan_windows(
                num, self.size, self.left, self.right, self.unit, row
            )
        ]


def _tokens(codec: "FocalCodec", name: str, seconds: Any) -> float:
    """Tokens in a number of seconds, not rounded."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(
            f"{name} must be a number of seconds, not negative, got {seconds!r}"
        )
    return seconds * codec.token_rate


def _sizes(
    codec: "FocalCodec",
    window: float | None,
    left: int,
    right: int,
    chunk: int,
    factor: int,
    smallest: int = 1,
) -> Sizes:
    """Windows of some seconds, at whole chunks of `chunk` frames."""
    if window is None:
        return Sizes(WHOLE)
    size = int(_tokens(codec, "window", window))
    if codec.chunk_length is not None:
        unit = codec.chunk_length // codec.hop_length
        return Sizes(max(size // unit, 1) * unit)
    unit = math.lcm(chunk, factor) // factor
    return Sizes(max(size, left + right + unit, smallest), left, right, unit)


def encode_sizes(
    codec: "FocalCodec", window: float | None, context: float
) -> Sizes:
    """Windows of an encoder: the context is the caller's.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    window : float, optional
        Length of a window (s); None for as long as it takes.
    context : float
        What it sees on each side of what is kept (s), offline.

    Returns
    -------
    Sizes
        In tokens; at least one is kept. Causal: whole chunks, no context.

    Raises
    ------
    ValueError
        If an argument is no number of seconds, or the window is too short.
    """
    tokens = math.ceil(_tokens(codec, "context", context))
    factor = codec.hop_length // codec.encoder.hop_length
    tokens = max(tokens, -(-codec.encoder.margin // factor))
    # A causal encoder before an offline compressor attends by chunks.
    chunk = codec.encoder.chunk if codec.encoder.causal else 1
    sizes = _sizes(codec, window, tokens, tokens, chunk, factor)
    if window is not None and not codec.causal and window <= 2 * context:
        raise ValueError(
            f"window must be longer than twice the context, {context} "
            f"seconds on each side, got {window}"
        )
    return sizes


def decode_sizes(codec: "FocalCodec", window: float | None) -> Sizes:
    """Windows of a decoder: the context is what its samples depend on.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    window : float, optional
        Length of a window (s); None for as long as it takes.

    Returns
    -------
    Sizes
        In tokens; at least half of a window is kept. Causal: whole chunks, no
        context.

    Raises
    ------
    ValueError
        If `window` is no number of seconds.
    """
    left, right = codec.decompressor.context(*codec.decoder.reach)
    refiner = codec.decompressor.refiner
    chunk = 1 if refiner is None else refiner.chunk
    factor = math.prod(codec.decompressor.factors)
    # At least half of a window is kept.
    smallest = 2 * (left + right)
    return _sizes(codec, window, left, right, chunk, factor, smallest)
