"""Metrics that compare the output with the original, sample by sample."""

import math

import pesq
import pystoi
import pytest
import torch
from metric_samples import (
    NOISE,
    NOISY,
    NOTHING,
    SPEECH,
    all_fields,
    noisy,
    same,
    shifted_voice,
)

from speechbrain_focalcodec.metrics.base import SAMPLE_RATE, Sample
from speechbrain_focalcodec.metrics.mel import MelDistance
from speechbrain_focalcodec.metrics.pesq import Pesq
from speechbrain_focalcodec.metrics.pitch import Pitch
from speechbrain_focalcodec.metrics.stoi import Stoi

ALL = [
    Stoi,
    lambda: Stoi(extended=True),
    Pesq,
    MelDistance,
    Pitch,
]


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("sig", NOTHING.values(), ids=NOTHING)
def test_empty_and_broken_signals_have_no_figure(make, sig):
    metric = make()
    # In a batch with a valid utterance.
    rows = metric([Sample("a", sig, sig), same()])
    assert [rows[0][name] for name in all_fields(metric)] == [None] * len(
        all_fields(metric)
    )
    assert None not in [rows[1][name] for name in all_fields(metric)]


@pytest.mark.parametrize("make", ALL)
def test_an_output_that_is_not_finite_has_no_figure(make):
    metric = make()
    broken = SPEECH.clone()
    broken[7] = math.inf
    [row] = metric([Sample("a", SPEECH, broken)])
    assert {row[name] for name in all_fields(metric)} == {None}


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("length", [1, 2, 100, 400, 1000, 4000])
def test_short_utterances_have_a_finite_figure_or_none(make, length):
    metric = make()
    [row] = metric([same(SPEECH[8000 : 8000 + length])])
    values = [row[name] for name in all_fields(metric)]
    assert all(value is None or math.isfinite(value) for value in values)


@pytest.mark.parametrize("make", ALL)
def test_does_not_apply_to_converted_voices(make):
    assert make().converts is False


# STOI


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_is_the_librarys(extended):
    metric = Stoi(extended)
    rows = metric([same(), noisy()])
    name = metric.name
    expected = pystoi.stoi(SPEECH.numpy(), NOISY.numpy(), 16000, extended)
    assert name == ("estoi" if extended else "stoi")
    assert rows[0][name] == pytest.approx(1)
    assert rows[1][name] == pytest.approx(expected)
    assert rows[1][name] < 0.99


@pytest.mark.parametrize("length", [3000, 16000])
def test_stoi_has_no_figure_without_enough_speech(length):
    sig = torch.zeros(length)
    sig[:3000] = SPEECH[8000:11000]
    assert Stoi()([same(sig)]) == [{"stoi": None}]


# PESQ


def test_pesq_is_the_librarys():
    rows = Pesq()([same(), noisy()])
    expected = pesq.pesq(16000, SPEECH.numpy(), NOISY.numpy(), "wb")
    assert rows[0]["pesq"] == pytest.approx(4.64, abs=0.01)
    assert rows[1]["pesq"] == pytest.approx(expected)
    assert rows[1]["pesq"] < 3


@pytest.mark.parametrize(
    ("original", "output"),
    [
        (SPEECH[:1000], SPEECH[:1000]),
        (SPEECH, torch.zeros_like(SPEECH)),
        (torch.zeros_like(SPEECH), SPEECH),
        (SPEECH, 1e-38 * SPEECH),
    ],
)
def test_pesq_is_none_if_the_library_refuses(original, output):
    assert Pesq()([Sample("a", original, output)]) == [{"pesq": None}]


def test_pesq_of_long_signals_is_the_mean_of_parts():
    # More segments of speech than the library supports.
    stretch = torch.cat([SPEECH[8000:12000], torch.zeros(4000)])
    original = stretch.repeat(62)
    output = original + 0.003 * torch.randn(len(original))
    [row] = Pesq()([Sample("a", original, output)])
    half = len(original) // 2
    expected = [
        pesq.pesq(16000, original[part].numpy(), output[part].numpy(), "wb")
        for part in (slice(None, half), slice(half, None))
    ]
    assert row["pesq"] == pytest.approx(sum(expected) / 2)


# Mel distance


def test_half_the_level_is_six_decibels():
    loud = 30 * torch.randn(16000, generator=torch.manual_seed(0))
    rows = MelDistance()([Sample("a", loud, 0.5 * loud), same()])
    expected = 20 * math.log10(2)
    assert rows[0]["mel_distance"] == pytest.approx(expected, abs=0.1)
    assert rows[1]["mel_distance"] == 0


def test_mel_distance_does_not_depend_on_the_batch():
    metric = MelDistance()
    short = Sample("b", SPEECH[:12345], NOISY[:12345])
    alone = [metric([sample])[0] for sample in (noisy(), short)]
    together = metric([noisy(), short])
    for one, other in zip(alone, together, strict=True):
        assert one["mel_distance"] == pytest.approx(other["mel_distance"])


# Pitch


def test_the_pitch_of_a_shifted_tone_is_off_by_the_shift():
    tone = shifted_voice(0)
    shifts = (0, 50, -120)
    rows = Pitch()(
        [Sample(str(cents), tone, shifted_voice(cents)) for cents in shifts]
    )
    for cents, row in zip(shifts, rows, strict=True):
        assert row["f0_error"] == pytest.approx(abs(cents), abs=5)
        assert row["gross_errors"] == 0
        # The tone itself ends at 0.9 s.
        assert row["voiced_frames"] == pytest.approx(0.9 / 0.016, abs=2)
        assert row["voicing_errors"] <= 2
        assert row["frames"] == 16000 // 256


@pytest.mark.parametrize("f0", [75, 131, 277, 450])
def test_a_shift_is_found_at_any_height(f0):
    cents = 1200 * math.log2(f0 / 200)
    tone, higher = shifted_voice(cents), shifted_voice(cents + 30)
    rows = Pitch()(
        [Sample("a", tone, higher), Sample("b", shifted_voice(0), tone)]
    )
    assert rows[0]["f0_error"] == pytest.approx(30, abs=10)
    assert rows[0]["gross_errors"] == 0
    # More than 20 % off.
    assert rows[1]["gross_errors"] == rows[1]["voiced_frames"] > 50


def test_the_pitch_does_not_depend_on_the_volume():
    pairs = [(1, 0.01), (0.01, 3), (1e-30, 1), (1, 1e-38), (1e-38, 1e30)]
    rows = Pitch()(
        [
            Sample(str(pair), pair[0] * SPEECH, pair[1] * SPEECH)
            for pair in pairs
        ]
    )
    for row in rows:
        assert row["voiced_frames"] > 100
        assert row["voicing_errors"] <= 1 and row["f0_error"] < 1
    # Noise stays unvoiced.
    [row] = Pitch()([Sample("a", SPEECH, 1e-5 * NOISE)])
    assert row["voiced_frames"] == 0 and row["voicing_errors"] > 100


def glide(cents=0, above=0.0):
    """A sum of harmonics that rises from 100 to 200 Hz, so many cents higher.

    Harmonics below `above` Hz are left out.
    """
    time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    f0 = 100 * 2 ** (time + cents / 1200)
    phase = 2 * torch.pi * f0.double().cumsum(0) / SAMPLE_RATE
    number = torch.arange(1, 18)[:, None]
    partials = (number * phase).cos() * (number * f0 >= above)
    return 0.03 * partials.sum(0).float()


def test_pitch_does_not_need_the_fundamental():
    """Telephone bandwidth keeps the pitch."""
    [row] = Pitch()([Sample("a", glide(), glide(above=300))])
    assert row["f0_error"] < 10
    assert row["gross_errors"] == 0 and row["voiced_frames"] > 56
    [row] = Pitch()([Sample("a", glide(), glide(70, above=300))])
    assert row["f0_error"] == pytest.approx(70, abs=5)


def test_another_octave_is_a_gross_error():
    output = glide()
    output[8000:] = glide(1200)[8000:]
    [row] = Pitch()([Sample("a", glide(), output)])
    assert row["gross_errors"] == pytest.approx(0.5 / 0.016, abs=3)
    assert row["voiced_frames"] > 56
    # It is not part of the F0 error.
    assert row["f0_error"] < 20
    [row] = Pitch()([Sample("a", glide(), glide(1200))])
    assert row["gross_errors"] == row["voiced_frames"] > 56
    assert row["f0_error"] is None


def test_the_frames_without_voice_are_voicing_errors():
    tone = shifted_voice(0)
    output = tone.clone()
    output[8000:] = 0
    [row] = Pitch()([Sample("a", tone, output)])
    # The tone itself ends at 0.9 s.
    assert row["voicing_errors"] == pytest.approx(0.4 / 0.016, abs=2)
    assert row["f0_error"] < 5


def test_pitch_without_voice_is_none():
    [row] = Pitch()([same(torch.zeros(16000))])
    assert row == {
        "f0_error": None,
        "gross_errors": 0,
        "voiced_frames": 0,
        "voicing_errors": 0,
        "frames": 16000 // 256,
    }


def test_the_pitch_of_an_original_is_estimated_once(monkeypatch):
    metric = Pitch()
    calls = []
    detect = metric.tracker.detect
    monkeypatch.setattr(
        *(metric.tracker, "detect"),
        lambda *a, **k: calls.append(1) or detect(*a, **k),
    )
    tone = shifted_voice(0)
    first = metric([Sample("a", tone, tone)])
    assert len(calls) == 2
    assert metric([Sample("a", tone, tone)]) == first
    assert len(calls) == 3
