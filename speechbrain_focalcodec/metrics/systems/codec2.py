"""Codec2, by its command-line tools."""

from dataclasses import dataclass

import torch

from speechbrain_focalcodec.metrics.systems.base import System
from speechbrain_focalcodec.metrics.systems.tools import (
    find_tool,
    from_pcm,
    run_tool,
    to_pcm,
)

__all__ = ["MODES", "Codec2", "Mode"]

PACKAGE = "codec2"


@dataclass(frozen=True)
class Mode:
    """Frame length in samples at 8 kHz, bits per frame, and delay in samples.

    Bits exclude the padding to bytes in files. The delay is the shift with the
    highest STOI, to 10 samples, on ten speakers of LibriSpeech. Single speakers
    deviate by up to 30 samples, which changes STOI by .01.
    """

    frame: int
    bits: int
    delay: int


MODES = {
    "3200": Mode(160, 64, 160),
    "2400": Mode(160, 48, 160),
    "1600": Mode(320, 64, 160),
    "1400": Mode(320, 56, 160),
    "1300": Mode(320, 52, 170),
    "1200": Mode(320, 48, 160),
    "700C": Mode(320, 28, 250),
    "450": Mode(320, 18, 240),
}


class Codec2(System):
    """Codec2 by ``c2enc`` and ``c2dec`` (Debian's ``codec2``), at 8 kHz.

    The codec's delay is removed, so the output is aligned with the input. The
    additional frames at the end are coded and counted.

    Arguments
    ---------
    mode : str
        One of `MODES`; most are named after their bits per second.
    raw : bool
        Keep the delay, as published comparisons often do. Metrics that compare
        samples then measure the delay.

    Raises
    ------
    FocalCodecError
        If a tool is not installed.
    ValueError
        If the mode is unknown.
    """

    sample_rate_input = sample_rate_output = 8000

    def __init__(self, mode: str, raw: bool = False):
        if mode not in MODES:
            raise ValueError(
                f"Codec2 has no mode {mode!r}; it has {', '.join(MODES)}"
            )
        self.mode = mode
        self.name = f"codec2:{mode}" + (":raw" if raw else "")
        self.delay = 0 if raw else MODES[mode].delay
        self.fingerprint = f"codec2 {mode}" + (" raw" if raw else "")
        self._encoder = find_tool("c2enc", PACKAGE)
        self._decoder = find_tool("c2dec", PACKAGE)

    def encode(self, sig: torch.Tensor) -> bytes:
        frame = MODES[self.mode].frame
        # The encoder drops an incomplete frame.
        missing = self.delay + -(len(sig) + self.delay) % frame
        sig = torch.nn.functional.pad(sig, (0, missing))
        return run_tool([self._encoder, self.mode, "-", "-"], to_pcm(sig))

    def decode(self, codes: bytes) -> torch.Tensor:
        pcm = run_tool([self._decoder, self.mode, "-", "-"], codes)
        return from_pcm(pcm)[self.delay :]

    def bits(self, codes: bytes) -> float:
        mode = MODES[self.mode]
        frames = len(codes) // -(-mode.bits // 8)
        return float(frames * mode.bits)
