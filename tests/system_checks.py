"""Checks of codecs under evaluation."""

from pathlib import Path

import torch

from speechbrain_focalcodec.audio import read_audio

DEMO = Path("speechbrain_focalcodec/assets/demo.flac")
# Input lengths in samples; some are shorter than a frame.
LENGTHS = [1, 159, 321, 4000]


def demo(sample_rate):
    return read_audio(DEMO, sample_rate)[0]


def noises():
    return [0.1 * torch.randn(length) for length in LENGTHS]


def kbps(system, output):
    return output.bits / len(output.sig) * system.sample_rate_output / 1000


def check_lengths(system):
    outputs = system.resynthesize(noises())
    ratio = system.sample_rate_output / system.sample_rate_input
    assert [len(output.sig) for output in outputs] == [
        round(length * ratio) for length in LENGTHS
    ]
    assert all(output.sig.isfinite().all() for output in outputs)
    return outputs
