"""Changing the sample rate of a signal that comes bit by bit."""

import math

import torch

from speechbrain_focalcodec.audio.resampling import (
    check_sample_rate,
    resample,
    resample_context,
)
from speechbrain_focalcodec.errors import AudioError

__all__ = ["StreamResampler"]

# Seconds that may be waited for what is to come.
MAX_DELAY = 0.1


class StreamResampler:
    """Resamples a stream part by part.

    The output equals that of
    :func:`~speechbrain_focalcodec.audio.resampling.resample` for the whole.

    Arguments
    ---------
    from_rate : int
        Sample rate of what is pushed (Hz).
    to_rate : int
        Sample rate of what is given (Hz).

    Attributes
    ----------
    block : int
        Samples pushed at a time, or a multiple, for the shortest delay.
    delay : float
        How far, in seconds, what was given is behind what was pushed, when
        that was whole blocks.

    Raises
    ------
    AudioError
        If the rates have hardly a common divisor: resampling would be behind
        by a second.
    ValueError
        If a rate is not within 4000..384000 Hz.

    Example
    -------
    >>> resampler = StreamResampler(48000, 16000)
    >>> [len(resampler.push(torch.zeros(480))) for _ in range(3)]
    [152, 160, 160]
    >>> len(resampler.flush()), resampler.delay
    (8, 0.0005)
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
        # The shortest length that is whole at both rates.
        self.block = from_rate // math.gcd(from_rate, to_rate)
        self._kept = torch.empty(0)
        self._start = 0  # of what is kept, in samples pushed
        self._done = 0  # of what was given, in samples pushed

    def push(self, sig: torch.Tensor) -> torch.Tensor:
        """Take what has come and give what is ready.

        Arguments
        ---------
        sig : torch.Tensor
            Float [T], of any length.

        Returns
        -------
        torch.Tensor
            Float [N], maybe of length 0.
        """
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
        """End the signal.

        Returns
        -------
        torch.Tensor
            The rest, float [N].
        """
        end = self._start + len(self._kept)
        if self.from_rate == self.to_rate or end == self._done:
            return self._kept[:0]
        out = self._resample(end)
        self._kept, self._start, self._done = self._kept[:0], end, end
        return out

    def _resample(self, stop: int) -> torch.Tensor:
        """What follows on what was given, with context up to `stop`."""
        out = resample(
            self._kept[: stop - self._start], self.from_rate, self.to_rate
        )
        given = (self._done - self._start) * self.to_rate // self.from_rate
        return out[given:]
