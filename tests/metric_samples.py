"""Utterances for the tests of metrics."""

import torch

from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.metrics.base import SAMPLE_RATE, Sample

SPEECH = read_audio(DEMO_CLIP)[0][: 3 * SAMPLE_RATE]
NOISE = torch.randn(len(SPEECH), generator=torch.manual_seed(0))
NOISY = SPEECH + 0.02 * NOISE

# What no metric has a figure for.
NOTHING = {
    "empty": torch.zeros(0),
    "not finite": torch.full((8000,), float("nan")),
}


def same(sig=SPEECH, name="same", **fields):
    """An utterance that the codec has not changed."""
    return Sample(name, sig, sig, **fields)


def noisy(name="noisy", **fields):
    """An utterance with noise."""
    return Sample(name, SPEECH, NOISY, **fields)


def shifted_voice(cents, seconds=1.0):
    """A sum of harmonics, so many cents above 200 Hz."""
    time = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    f0 = 200 * 2 ** (cents / 1200)
    partials = torch.arange(1, 13)[:, None] * f0 * time
    tone = 0.3 * (2 * torch.pi * partials).cos().mean(0)
    # At the very end of a signal F0 is uncertain.
    tone[-SAMPLE_RATE // 10 :] = 0
    return tone


def all_fields(metric):
    """The fields of a row that the summary reads."""
    names = [column.numerator for column in metric.columns]
    return names + [c.denominator for c in metric.columns if c.denominator]
