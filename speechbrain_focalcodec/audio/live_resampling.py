"""Changes the sample rate of a signal that arrives in pieces."""

import math

import torch

from speechbrain_focalcodec.audio.resampling import (
    check_sample_rate,
    resample,
    resample_context,
)
from speechbrain_focalcodec.errors import AudioError

__all__ = ["StreamResampler"]

# Longest look-ahead (s).
MAX_DELAY = 0.1


class StreamResampler:
    """Resamples a stream piece by piece.

    The output equals that of
    :func:`~speechbrain_focalcodec.audio.resampling.resample` for the whole
    signal.

    Arguments
    ---------
    from_rate : int
        Sample rate of the input (Hz).
    to_rate : int
        Sample rate of the output (Hz).

    Attributes
    ----------
    block : int
        Input length, or a multiple of it, with the shortest delay.
    delay : float
        Delay of the output behind an input of whole blocks (s).

    Raises
    ------
    AudioError
        If the rates have no large common divisor: the delay would be a second.
    ValueError
        If a rate is not within 4000..384000 Hz.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        check_sample_rate("from_rate", from_rate)
        check_sample_rate("to_rate", to_rate)
        self.from_rate, self.to_rate = from_rate, to_rate
        self._context = resample_context(from_rate, to_rate)
        self.delay = self._context / from_rate
        if self.delay > MAX_DELAY:
            raise AudioError(
                f"{from_rate} Hz cannot be brought to {to_rate} Hz live; set "
                "the sound device to a common rate, such as 48000 Hz"
            )
        # The shortest integer number of samples at both rates.
        self.block = from_rate // math.gcd(from_rate, to_rate)
        self._kept = torch.empty(0)
        self._start = 0  # of self._kept, in input samples
        self._done = 0  # of the output so far, in input samples

    def push(self, sig: torch.Tensor) -> torch.Tensor:
        """Input, float [T], to the next output, float [N]; N may be 0."""
        if self.from_rate == self.to_rate:
            return sig
        self._kept = torch.cat([self._kept, sig])
        known = self._start + len(self._kept) - self._context
        stop = known - known % self.block
        if stop <= self._done:
            return sig[:0]
        out = self._resample(stop + self._context)
        size = (stop - self._done) * self.to_rate // self.from_rate
        self._done = stop
        forget = max(0, stop - self._context) - self._start
        self._start += forget
        self._kept = self._kept[forget:].clone()
        return out[:size]

    def flush(self) -> torch.Tensor:
        """End the signal; returns the rest, float [N]."""
        end = self._start + len(self._kept)
        if self.from_rate == self.to_rate or end == self._done:
            return self._kept[:0]
        out = self._resample(end)
        self._kept, self._start, self._done = self._kept[:0], end, end
        return out

    def _resample(self, stop: int) -> torch.Tensor:
        """Output after `self._done`, with context up to `stop`."""
        out = resample(
            self._kept[: stop - self._start], self.from_rate, self.to_rate
        )
        done = (self._done - self._start) * self.to_rate // self.from_rate
        return out[done:]
