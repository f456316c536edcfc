"""Opus, by its command-line tools."""

from collections.abc import Iterator

import torch

from speechbrain_focalcodec.errors import FocalCodecError
from speechbrain_focalcodec.metrics.systems.base import System
from speechbrain_focalcodec.metrics.systems.tools import (
    find_tool,
    from_pcm,
    run_tool,
    to_pcm,
)

__all__ = ["Opus"]

PACKAGE = "opus-tools"
# Range of opusenc in kbit/s for one channel.
LOWEST, HIGHEST = 6.0, 256.0
# Packets before the audio in an Ogg stream: head and tags.
HEADERS = 2
# Bytes of an Ogg page before its segment table; the last one is the length
# of the table.
PAGE_HEADER = 27


class Opus(System):
    """Opus by ``opusenc`` and ``opusdec`` (Debian's ``opus-tools``), at 16 kHz.

    The tools keep length and alignment. Frames are 20 ms and the bitrate is
    variable, so it differs from the target. Only bits of audio packets are
    counted, without the Ogg container.

    Arguments
    ---------
    kbps : float
        Target bitrate in kbit/s, 6 to 256.

    Raises
    ------
    FocalCodecError
        If a tool is not installed.
    ValueError
        If `kbps` is out of range.
    """

    sample_rate_input = sample_rate_output = 16000

    def __init__(self, kbps: float):
        if not LOWEST <= kbps <= HIGHEST:
            raise ValueError(
                f"Opus takes {LOWEST:g} to {HIGHEST:g} kbit/s, not {kbps:g}"
            )
        self.kbps = float(kbps)
        self.name = f"opus:{self.kbps:g}"
        self._encoder = find_tool("opusenc", PACKAGE)
        self._decoder = find_tool("opusdec", PACKAGE)
        version = run_tool([self._encoder, "--version"]).decode()
        self.fingerprint = f"{version.partition(chr(10))[0]}, {self.kbps:g}"

    def encode(self, sig: torch.Tensor) -> bytes:
        rate = str(self.sample_rate_input)
        options = ["--quiet", "--bitrate", f"{self.kbps:g}"]
        raw = ["--raw", "--raw-rate", rate, "--raw-chan", "1"]
        return run_tool([self._encoder, *options, *raw, "-", "-"], to_pcm(sig))

    def decode(self, codes: bytes) -> torch.Tensor:
        rate = str(self.sample_rate_output)
        # Dither would add noise.
        options = ["--quiet", "--no-dither", "--rate", rate]
        return from_pcm(run_tool([self._decoder, *options, "-", "-"], codes))

    def bits(self, codes: bytes) -> float:
        return 8.0 * sum(list(_packet_sizes(codes))[HEADERS:])


def _packet_sizes(ogg: bytes) -> Iterator[int]:
    """Size in bytes of each packet in an Ogg file with one stream."""
    place = size = 0
    while place < len(ogg):
        if ogg[place : place + 4] != b"OggS":
            raise FocalCodecError("opusenc wrote no Ogg file")
        start = place + PAGE_HEADER
        table = ogg[start : start + ogg[start - 1]]
        for segment in table:
            size += segment
            # A segment below 255 bytes ends a packet.
            if segment < 255:
                yield size
                size = 0
        place = start + len(table) + sum(table)
