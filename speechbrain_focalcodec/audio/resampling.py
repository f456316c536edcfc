"""Changing the sample rate of signals."""

from fractions import Fraction
from typing import TypeVar

import torch

from speechbrain_focalcodec.utils.extras import import_torchaudio

__all__ = [
    "MAX_SAMPLE_RATE",
    "MIN_SAMPLE_RATE",
    "check_sample_rate",
    "resample",
    "resample_context",
    "resampled_length",
]

torchaudio = import_torchaudio()

Length = TypeVar("Length", int, torch.Tensor)

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4000, 384000  # Hz
_MAX_KERNEL = 2**22  # taps of a resampling kernel


def resampled_length(length: Length, from_rate: int, to_rate: int) -> Length:
    """Give the length that `length` samples have at another rate.

    Arguments
    ---------
    length : int or torch.Tensor
        Number of samples at `from_rate`, or int64 numbers of them.
    from_rate : int
        Sample rate in Hz.
    to_rate : int
        Sample rate in Hz.

    Returns
    -------
    int or torch.Tensor
        ``ceil(length * to_rate / from_rate)``, exactly.

    Example
    -------
    >>> resampled_length(3, 24000, 16000)
    2
    """
    return -(-length * to_rate // from_rate)


def check_sample_rate(name: str, rate: int) -> None:
    """Refuse a sample rate that is out of bounds.

    Arguments
    ---------
    name : str
        The argument's name, for the message.
    rate : int
        The sample rate in Hz.

    Raises
    ------
    ValueError
        If it is not within 4000..384000 Hz.

    Example
    -------
    >>> check_sample_rate("sample_rate", 16000)
    """
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise ValueError(
            f"{name}={rate} is not within "
            f"{MIN_SAMPLE_RATE}..{MAX_SAMPLE_RATE} Hz"
        )


def resample(sig: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Resample the last dimension by band-limited interpolation.

    By torchaudio; when the rates have no large common divisor, its kernel
    would take gigabytes, and the spectrum is cut or extended instead.

    Arguments
    ---------
    sig : torch.Tensor
        The signal, float [..., T].
    from_rate : int
        Its sample rate in Hz.
    to_rate : int
        The sample rate wanted, in Hz.

    Returns
    -------
    torch.Tensor
        The signal, float [..., ceil(T * to_rate / from_rate)].

    Raises
    ------
    ValueError
        If a rate is not within 4000..384000 Hz.

    Example
    -------
    >>> resample(torch.zeros(2, 44100), 44100, 16000).shape
    torch.Size([2, 16000])
    """
    check_sample_rate("from_rate", from_rate)
    check_sample_rate("to_rate", to_rate)
    if from_rate == to_rate:
        return sig
    length = resampled_length(sig.shape[-1], from_rate, to_rate)
    up, down = _ratio(from_rate, to_rate)
    if up * down <= _MAX_KERNEL:
        out = torchaudio.functional.resample(sig, down, up)
    else:
        # Zeros behind the signal keep its ends apart, since the transform is
        # circular, and fill it to where both rates meet.
        meets = -(-(sig.shape[-1] + 1024) // down)
        spectrum = torch.fft.rfft(sig, n=meets * down)
        out = torch.fft.irfft(spectrum, n=meets * up) * (up / down)
    # torchaudio rounds the length in float32.
    missing = max(0, length - out.shape[-1])
    return torch.nn.functional.pad(out, (0, missing))[..., :length]


def resample_context(from_rate: int, to_rate: int) -> int:
    """Give how far :func:`resample` looks to either side of a sample.

    Signals are resampled in blocks that begin at a multiple of this length,
    have so much context on both sides, and are cut to size afterwards. This
    equals resampling the whole but for rounding; where the spectrum is used,
    whose reach has no end, it is close (`AudioReader` says how close).

    Arguments
    ---------
    from_rate : int
        Sample rate of the signal, in Hz.
    to_rate : int
        The sample rate wanted, in Hz.

    Returns
    -------
    int
        The reach in samples at `from_rate`; a multiple of the shortest length
        that is whole at both rates.

    Example
    -------
    >>> resample_context(16000, 16000), resample_context(48000, 16000)
    (0, 24)
    >>> resample_context(44101, 16000)
    44101
    """
    if from_rate == to_rate:
        return 0
    up, down = _ratio(from_rate, to_rate)
    if up * down > _MAX_KERNEL:
        return from_rate
    # torchaudio's kernel reaches 6 / 0.99 periods of the lower rate, and one
    # sample more by rounding.
    return down * -(-8 // min(up, down))


def _ratio(from_rate: int, to_rate: int) -> tuple[int, int]:
    ratio = Fraction(to_rate, from_rate)
    return ratio.numerator, ratio.denominator
