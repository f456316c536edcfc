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
    """What is known of a mode.

    Arguments
    ---------
    frame : int
        Samples of a frame, at 8 kHz.
    bits : int
        Bits of a frame. In files each frame fills up its last byte, which is
        not counted.
    delay : int
        Samples by which speech comes out too late: the shift with the highest
        STOI, in the mean over ten speakers of LibriSpeech, to 10 samples.
        Single speakers are within 30 samples of it, which cost STOI .01.
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
    """Codec2 by ``c2enc`` and ``c2dec`` (Debian's package ``codec2``).

    Takes and gives 8 kHz. The codec's delay is taken out, so that the output
    is aligned with the input; the frames that this takes at the end are
    coded and counted.

    Arguments
    ---------
    mode : str
        One of `MODES`, mostly its bits a second.
    raw : bool
        Whether to leave the delay in, as comparisons that have been published
        often do. Metrics that compare sample by sample then judge the delay.

    Raises
    ------
    FocalCodecError
        If a tool is not installed.
    ValueError
        If there is no such mode.

    Example
    -------
    >>> MODES["1300"].bits / (MODES["1300"].frame / 8000)
    1300.0
    >>> Codec2("1301")
    Traceback (most recent call last):
        ...
    ValueError: Codec2 has no mode '1301'; it has 3200, 2400, 1600, ...
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
        # The encoder drops what does not fill a frame.
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
