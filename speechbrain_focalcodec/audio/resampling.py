"""Changes the sample rate of signals."""

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
    """Length at another rate: ``ceil(length * to_rate / from_rate)``, exactly.

    `length` is an int or an int64 tensor; the rates are in Hz.
    """
    return -(-length * to_rate // from_rate)


def check_sample_rate(name: str, rate: int) -> None:
    """Raise ValueError if a sample rate is not within 4000..384000 Hz."""
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise ValueError(
            f"{name}={rate} is not within "
            f"{MIN_SAMPLE_RATE}..{MAX_SAMPLE_RATE} Hz"
        )


def resample(sig: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Resample the last dimension by band-limited interpolation.

    With torchaudio. If the rates have no large common divisor, its kernel would
    take gigabytes, so the spectrum is cut or extended instead.

    Arguments
    ---------
    sig : torch.Tensor
        The signal, float [..., T].
    from_rate, to_rate : int
        Sample rates of input and output (Hz).

    Returns
    -------
    torch.Tensor
        The signal, float [..., ceil(T * to_rate / from_rate)].

    Raises
    ------
    ValueError
        If a rate is not within 4000..384000 Hz.
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
        # Zeros keep the ends apart, since the transform is circular, and pad
        # the signal to an integer number of samples at both rates.
        meets = -(-(sig.shape[-1] + 1024) // down)
        spectrum = torch.fft.rfft(sig, n=meets * down)
        out = torch.fft.irfft(spectrum, n=meets * up) * (up / down)
    # torchaudio rounds the length in float32.
    missing = max(0, length - out.shape[-1])
    return torch.nn.functional.pad(out, (0, missing))[..., :length]


def resample_context(from_rate: int, to_rate: int) -> int:
    """Input samples that :func:`resample` sees on either side of a sample.

    It is a multiple of the shortest integer length at both rates. A signal can
    be resampled in blocks that start at multiples of it, have this context on
    both sides and are cropped afterwards. This equals resampling the whole
    signal up to rounding; if the spectrum is used, whose reach is unlimited, it
    is close (`AudioReader` has figures).
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
