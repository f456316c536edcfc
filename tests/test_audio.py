"""Reading, checking and writing audio files."""

import math
import struct

import numpy as np
import pytest
import soundfile
import torch
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.audio import (
    check_sig,
    find_audio_files,
    read_audio,
    resample,
    resampled_length,
    write_audio,
)
from speechbrain_focalcodec.errors import AudioError

FORMATS = {
    "wav": {},
    "flac": {},
    "ogg": {},
    "mp3": {},
    "aiff": {},
    "au": {},
    "w64": {},
    "caf": {},
    "rf64": {"format": "RF64"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}

# A file in a temporary folder serves for all examples.
PROPERTY = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def noise(num_samples=16000, channels=1):
    rng = np.random.default_rng(0)
    return 0.1 * rng.standard_normal((num_samples, channels))


def make(folder, suffix, sig=None, sample_rate=16000):
    path = folder / f"whole.{suffix}"
    sig = noise() if sig is None else sig
    soundfile.write(path, sig, sample_rate, **FORMATS[suffix])
    return path


def wav_bytes(path, **claims):
    """The bytes of a 16-bit WAV with other claims in its header."""
    data = bytearray(path.read_bytes())
    offsets = {"channels": (22, "<H"), "sample_rate": (24, "<I")}
    for name, value in claims.items():
        offset, kind = offsets[name]
        struct.pack_into(kind, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize("suffix", FORMATS)
def test_whole_files_are_read(tmp_path, suffix):
    path = make(tmp_path, suffix)
    sig, sample_rate = read_audio(path)
    assert sample_rate == 16000
    assert sig.dtype == torch.float32 and sig.shape == (16000,)
    assert 0.03 < sig.std() < 0.2


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9])
def test_parts_of_files_are_refused(tmp_path, suffix, part):
    data = make(tmp_path, suffix).read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(AudioError, match=rf"cut\.{suffix}"):
        read_audio(cut)


@PROPERTY
@given(cut=st.integers(1, 1000))
def test_a_wav_cut_anywhere_is_refused(tmp_path, cut):
    data = make(tmp_path, "wav", noise(478)).read_bytes()
    assert len(data) == 1000
    path = tmp_path / "cut.wav"
    path.write_bytes(data[:-cut])
    with pytest.raises(AudioError, match="cut.wav"):
        read_audio(path)


@PROPERTY
@given(cut=st.integers(1, 2000))
def test_an_ogg_cut_anywhere_is_refused(tmp_path, cut):
    data = make(tmp_path, "ogg").read_bytes()
    path = tmp_path / "cut.ogg"
    path.write_bytes(data[:-cut])
    with pytest.raises(AudioError, match="cut.ogg"):
        read_audio(path)


def test_a_missing_pad_byte_is_accepted(tmp_path):
    path = make(tmp_path, "wav", noise(1001))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4, len(data) - 8 + 1)
    path.write_bytes(data)
    assert len(read_audio(path)[0]) == 1001


# Without its Xing frame libsndfile guesses the length of an MP3 from the first
# frame: too short, and too long.
@pytest.mark.parametrize("gains", [(1.0, 1e-4), (1e-4, 1.0)])
def test_mp3_of_unknown_length_is_read(tmp_path, gains):
    sig = noise(80000) * np.repeat(gains, 40000)[:, None]
    path = make(tmp_path, "mp3", sig)
    assert len(read_audio(path)[0]) == 80000
    data = path.read_bytes()
    second_frame = data.index(data[:2], 100)
    path.write_bytes(data[second_frame:])
    # Whole frames, with the padding of the encoder.
    length = len(read_audio(path)[0])
    assert length % 576 == 0 and 80000 + 576 < length < 80000 + 4 * 576


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"sample_rate": 2147483647}, "claims 2147483647 Hz"),
        ({"sample_rate": 3999}, "claims 3999 Hz"),
        ({"channels": 1000}, "wild.wav"),
    ],
)
def test_absurd_headers_are_refused(tmp_path, claims, message):
    path = tmp_path / "wild.wav"
    path.write_bytes(wav_bytes(make(tmp_path, "wav"), **claims))
    with pytest.raises(AudioError, match=message):
        read_audio(path)


def test_a_claim_is_refused_before_decoding(tmp_path):
    path = make(tmp_path, "flac")
    data = bytearray(path.read_bytes())
    # STREAMINFO's 36 bits of total samples: 2^36 - 1, half a terabyte.
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises(AudioError, match="should have 68719476735 samples"):
        read_audio(path)


def test_long_files_are_refused(tmp_path):
    path = make(tmp_path, "wav")
    assert len(read_audio(path, max_duration=1.0)[0]) == 16000
    with pytest.raises(AudioError, match="more than 0.9 s"):
        read_audio(path, max_duration=0.9)


def test_many_channels_are_refused(tmp_path):
    path = make(tmp_path, "wav", noise(100, channels=65))
    with pytest.raises(AudioError, match="65 channels"):
        read_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_wild_samples_are_refused(tmp_path, value):
    sig = noise()
    sig[777] = value
    path = tmp_path / "wild.wav"
    soundfile.write(path, sig, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="wild.wav: has NaN"):
        read_audio(path)


def test_other_files_than_audio_are_refused(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "headless.raw").write_bytes(bytes(100))
    make(tmp_path, "wav", noise(0)).rename(tmp_path / "silent.wav")
    for name in ("empty.wav", "text.wav", "headless.raw", "silent.wav"):
        with pytest.raises(AudioError, match=name):
            read_audio(tmp_path / name)
    for path in (tmp_path, tmp_path / "missing.wav"):
        with pytest.raises(AudioError, match="no such file"):
            read_audio(path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_damaged_bytes_raise_only_audio_errors(tmp_path, suffix):
    whole = make(tmp_path, suffix, noise(4000)).read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    refused = 0

    @PROPERTY
    @given(damaged(whole))
    def check(data):
        nonlocal refused
        path.write_bytes(data)
        try:
            sig, sample_rate = read_audio(path, sample_rate=16000)
        except AudioError as error:
            refused += 1
            assert path.name in str(error)
        else:
            assert sample_rate == 16000
            assert 0 < len(sig) <= 16000 * 3600
            assert torch.isfinite(sig).all()

    check()
    assert refused > 0


def test_channels_are_averaged_and_resampled(tmp_path):
    time = np.arange(48000) / 48000
    left = 0.5 * np.sin(2 * np.pi * 440 * time)
    path = make(tmp_path, "wav", np.stack([left, 0 * left], 1), 48000)
    sig, sample_rate = read_audio(path, sample_rate=16000)
    assert sample_rate == 16000
    wanted = 0.25 * torch.sin(2 * math.pi * 440 * torch.arange(16000) / 16000)
    assert (sig - wanted)[100:-100].abs().max() < 1e-3


@PROPERTY
@given(
    length=st.integers(1, 3000),
    from_rate=st.integers(4000, 50000),
    to_rate=st.sampled_from([16000, 24000]),
)
def test_resampling_has_the_exact_length(length, from_rate, to_rate):
    out = resample(torch.ones(2, length), from_rate, to_rate)
    wanted = math.ceil(length * to_rate / from_rate)
    assert out.shape == (2, wanted)
    assert resampled_length(length, from_rate, to_rate) == wanted


# 44101 and 15991 are primes: their exact kernels would take gigabytes.
@pytest.mark.parametrize("from_rate", [44100, 44101, 15991, 8000])
def test_resampling_keeps_the_signal(from_rate):
    def tone(sample_rate):
        time = torch.arange(sample_rate, dtype=torch.float64) / sample_rate
        return torch.sin(2 * math.pi * 440 * time).float()

    out = resample(tone(from_rate), from_rate, 16000)
    assert (out - tone(16000))[200:-200].abs().max() < 2e-3


def test_resampling_refuses_absurd_rates():
    with pytest.raises(ValueError, match="from_rate=0"):
        resample(torch.zeros(10), 0, 16000)


@pytest.mark.parametrize(
    ("suffix", "error"), [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.3)]
)
def test_written_audio_reads_back(tmp_path, suffix, error):
    sig = torch.from_numpy(noise(20000)[:, 0]).float()
    path = tmp_path / "new" / f"a{suffix}"
    write_audio(path, sig, 24000)
    back, sample_rate = read_audio(path)
    assert sample_rate == 24000 and back.shape == sig.shape
    assert (back - sig).abs().max() < error
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_writing_clips(tmp_path):
    write_audio(tmp_path / "a.wav", torch.tensor([2.0, -3.0, 0.5]), 16000)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    back = read_audio(tmp_path / "a.wav")[0]
    assert (back - torch.tensor([1.0, -1.0, 0.5])).abs().max() < 1e-4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_writing_refuses_values_that_are_not_finite(tmp_path, value):
    path = tmp_path / "a.wav"
    write_audio(path, torch.zeros(100), 16000)
    with pytest.raises(AudioError, match="a.wav: has NaN"):
        write_audio(path, torch.tensor([0.0, value]), 16000)
    assert len(read_audio(path)[0]) == 100


def test_writing_refuses_other_suffixes(tmp_path):
    with pytest.raises(AudioError, match="a.mp3: cannot write"):
        write_audio(tmp_path / "a.mp3", torch.zeros(10), 16000)


def test_signals_are_checked():
    check_sig(torch.zeros(2, 10))
    check_sig(torch.zeros(10), ndim=1)
    with pytest.raises(ValueError, match=r"wavs: .* not torch.int16"):
        check_sig(torch.zeros(2, 10).short(), name="wavs")
    with pytest.raises(ValueError, match="not list"):
        check_sig([0.0])
    with pytest.raises(ValueError, match=r"must be \[B, T\]"):
        check_sig(torch.zeros(10))
    with pytest.raises(AudioError, match="is empty"):
        check_sig(torch.zeros(2, 0))
    with pytest.raises(AudioError, match="NaN"):
        check_sig(torch.full((1, 3), math.nan))


def test_audio_files_are_found(tmp_path):
    for name in ("b/2.FLAC", "b/1.wav", "a.mp3", "n.txt", ".x.wav", ".c/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [p.relative_to(tmp_path) for p in find_audio_files(tmp_path)]
    assert [path.as_posix() for path in found] == [
        *("a.mp3", "b/1.wav", "b/2.FLAC")
    ]
    with pytest.raises(AudioError, match="no such folder"):
        find_audio_files(tmp_path / "missing")
