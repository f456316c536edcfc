"""Long audio files: read and written part by part, equal to the whole."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.audio import files as audio
from speechbrain_focalcodec.audio import gate as audio_gate
from speechbrain_focalcodec.audio import read_audio, write_audio
from speechbrain_focalcodec.audio import stream as audio_stream
from speechbrain_focalcodec.audio.resampling import resample_context
from speechbrain_focalcodec.audio.stream import AudioReader, AudioWriter
from speechbrain_focalcodec.errors import AudioError

FORMATS = ("wav", "flac", "ogg", "mp3")

# A file in a temporary folder serves for all examples.
PROPERTY = settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of a second, decoded in many calls: long files are short."""
    monkeypatch.setattr(audio_stream, "_BLOCK_DURATION", 1)
    monkeypatch.setattr(audio_gate, "_DECODE_VALUES", 5000)


def noise(num_samples, channels=1):
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, (num_samples, channels))


def make(folder, suffix, sig, sample_rate=16000, **options):
    path = folder / f"a.{suffix}"
    soundfile.write(path, sig, sample_rate, **options)
    return path


def read_all(path, sample_rate=None, step=7000):
    """Read a file in ranges of a fixed length."""
    with AudioReader(path, sample_rate) as reader:
        return torch.cat(
            [
                reader.read(start, min(start + step, reader.num_samples))
                for start in range(0, reader.num_samples, step)
            ]
        )


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("from_rate", [8000, 16000, 22050, 44100, 48000])
def test_reading_in_parts_equals_reading_whole(
    tmp_path, suffix, from_rate, short_blocks
):
    path = make(tmp_path, suffix, noise(3 * from_rate + 777, 2), from_rate)
    for to_rate in (None, 16000, 24000):
        whole, sample_rate = read_audio(path, to_rate)
        with AudioReader(path, to_rate) as reader:
            assert reader.num_samples == len(whole)
            assert reader.sample_rate == sample_rate
            assert reader.file_num_samples == 3 * from_rate + 777
            assert reader.file_sample_rate == from_rate
        parts = read_all(path, to_rate)
        assert parts.dtype == torch.float32 and parts.shape == whole.shape
        assert (parts - whole).abs().max() < 1e-6
        if to_rate is None:
            assert torch.equal(parts, whole)


# 48 kHz is reduced most in length, 8 kHz has the shortest context.
@pytest.mark.parametrize("from_rate", [8000, 44100, 48000])
def test_blocks_of_the_default_length_equal_the_whole(tmp_path, from_rate):
    path = make(tmp_path, "wav", noise(60 * from_rate + 1), from_rate)
    whole, _ = read_audio(path, 16000)
    parts = read_all(path, 16000, step=160001)
    assert parts.shape == whole.shape
    assert (parts - whole).abs().max() < 1e-6


@pytest.mark.parametrize("suffix", FORMATS)
def test_decoding_in_parts_equals_decoding_at_once(tmp_path, suffix):
    path = make(tmp_path, suffix, noise(50000, 2))
    # Without a seek, as it decoded before there was a stream.
    with soundfile.SoundFile(path) as stream:
        wanted = stream.read(dtype="float32").mean(axis=1)
    for num_frames in (100, 1152, 4096, 50000):
        with audio_gate.CheckedFile(path, max_duration=60.0) as file:
            parts = [
                file.read(min(num_frames, 50000 - start))
                for start in range(0, 50000, num_frames)
            ]
        assert np.array_equal(torch.cat(parts).numpy(), wanted)


# 44101 is a prime; its ratio to 16000 goes through the spectrum.
@pytest.mark.parametrize("from_rate", [44100, 44101])
def test_one_block_is_bit_identical(tmp_path, from_rate):
    path = make(tmp_path, "wav", noise(30 * from_rate), from_rate)
    assert torch.equal(read_all(path, 16000), read_audio(path, 16000)[0])


@pytest.mark.parametrize("from_rate", [8009, 44101])
def test_awkward_ratios_are_close(tmp_path, from_rate):
    assert resample_context(from_rate, 16000) == from_rate
    path = make(tmp_path, "wav", noise(65 * from_rate + 5), from_rate)
    whole, _ = read_audio(path, 16000)
    parts = read_all(path, 16000)
    assert parts.shape == whole.shape
    assert (parts - whole).abs().max() < 5e-3
    assert (parts - whole).square().mean().sqrt() < 1e-3


@PROPERTY
@given(
    moves=st.lists(
        st.tuples(st.integers(0, 20000), st.integers(1, 40000)), min_size=1
    ),
    to_rate=st.sampled_from([16000, 24000, 44100]),
)
def test_any_ranges_equal_those_of_the_whole(
    tmp_path, short_blocks, moves, to_rate
):
    path = tmp_path / "a.wav"
    if not path.exists():
        soundfile.write(path, noise(4 * 44100 + 11), 44100)
    whole, _ = read_audio(path, to_rate)
    start = 0
    with AudioReader(path, to_rate) as reader:
        for move, length in moves:
            start = min(start + move, reader.num_samples - 1)
            stop = min(start + length, reader.num_samples)
            part = reader.read(start, stop)
            assert part.shape == (stop - start,)
            assert (part - whole[start:stop]).abs().max() < 1e-6


def test_read_samples_are_a_copy(tmp_path):
    path = make(tmp_path, "wav", noise(1000))
    with AudioReader(path) as reader:
        reader.read(0, 1000).zero_()
        assert torch.equal(reader.read(0, 1000), read_audio(path)[0])


def test_wrong_arguments_are_refused(tmp_path):
    path = make(tmp_path, "wav", noise(1000))
    with pytest.raises(ValueError, match="sample_rate=100"):
        AudioReader(path, sample_rate=100)
    with AudioReader(path) as reader:
        for start, stop in ((-1, 5), (5, 5), (6, 5), (0, 1001), (1000, 1001)):
            with pytest.raises(ValueError, match=f"start={start}, stop={stop}"):
                reader.read(start, stop)
        reader.read(500, 600)
        with pytest.raises(ValueError, match="start=499: .* last start, 500"):
            reader.read(499, 600)
        reader.read(500, 1000)


def test_duration_is_bounded_not_size(tmp_path, monkeypatch):
    path = make(tmp_path, "wav", noise(16000, 2))
    with pytest.raises(AudioError, match="claims 1 s, more than 0.5 s"):
        AudioReader(path, max_duration=0.5)
    monkeypatch.setattr(audio, "MAX_VALUES", 31999)
    with pytest.raises(AudioError, match="2 channels are too many"):
        read_audio(path)
    assert len(read_all(path)) == 16000


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 0.99])
def test_parts_of_files_are_refused(tmp_path, suffix, part, short_blocks):
    path = make(tmp_path, suffix, noise(80000))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(AudioError) as whole:
        read_audio(path)
    with pytest.raises(AudioError) as parts:
        read_all(path, 24000)
    assert str(parts.value) == str(whole.value)
    assert path.name in str(parts.value)


# Without its Xing frame libsndfile guesses the length of an MP3 from the first
# frame: too short, and too long.
@pytest.mark.parametrize("gains", [(1.0, 1e-4), (1e-4, 1.0)])
def test_mp3_of_unknown_length_is_read(tmp_path, gains, short_blocks):
    sig = noise(80000) * np.repeat(gains, 40000)[:, None]
    path = make(tmp_path, "mp3", sig)
    data = path.read_bytes()
    path.write_bytes(data[data.index(data[:2], 100) :])
    whole, _ = read_audio(path)
    assert len(whole) > 80000
    assert torch.equal(read_all(path), whole)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_wild_samples_are_refused_where_they_are(tmp_path, value, short_blocks):
    sig = noise(80000)
    sig[40000] = value
    path = make(tmp_path, "wav", sig, subtype="FLOAT")
    with AudioReader(path) as reader:
        assert torch.isfinite(reader.read(0, 32000)).all()
        # Samples after the damage do not replace the damaged ones.
        for _ in range(2):
            with pytest.raises(AudioError, match="a.wav: has NaN"):
                reader.read(32000, 48000)
        with pytest.raises(AudioError, match="a.wav: has NaN"):
            reader.read(60000, 80000)


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_bytes_raise_only_audio_errors(tmp_path, suffix, short_blocks):
    path = make(tmp_path, suffix, noise(20000), 8000)
    whole = path.read_bytes()
    refused = 0

    @PROPERTY
    @given(damaged(whole))
    def check(data):
        nonlocal refused
        path.write_bytes(data)
        try:
            sig = read_all(path, sample_rate=16000, step=100000)
        except AudioError as error:
            refused += 1
            assert path.name in str(error)
        else:
            assert torch.isfinite(sig).all()

    check()
    assert refused > 0


def test_memory_does_not_grow_with_the_file(tmp_path):
    code = """
import resource, sys
import soundfile, torch
from speechbrain_focalcodec.audio.stream import AudioReader

torch.set_num_threads(1)

def peak(minutes):
    path = f"{sys.argv[1]}/{minutes}.wav"
    with soundfile.SoundFile(path, "w", 48000, 2, "PCM_16") as stream:
        for _ in range(minutes):
            stream.write(torch.zeros(60 * 48000, 2, dtype=torch.int16).numpy())
    with AudioReader(path, 16000) as reader:
        for start in range(0, reader.num_samples, 80000):
            stop = min(start + 160000, reader.num_samples)
            reader.read(start, stop)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

print(peak(2), peak(10))
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    short, long = map(float, out.split())
    # As a whole, the channels and their mean take 315 MiB.
    assert long - short < 20


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("step", [1000, 70000])
def test_writing_in_parts_equals_writing_whole(tmp_path, suffix, step):
    sig = torch.from_numpy(noise(150001)[:, 0]).float() * 3
    write_audio(tmp_path / f"whole.{suffix}", sig, 24000)
    parts = tmp_path / "new" / f"parts.{suffix}"
    with AudioWriter(parts, 24000) as writer:
        for part in sig.split(step):
            writer.write(part)
            writer.write(part[:0])
        assert not parts.exists()
    assert writer.num_samples == len(sig)
    assert [item.name for item in parts.parent.iterdir()] == [parts.name]
    whole, sample_rate = read_audio(tmp_path / f"whole.{suffix}")
    back, back_rate = read_audio(parts)
    assert back_rate == sample_rate == 24000
    assert torch.equal(back, whole) and len(back) == len(sig)
    if suffix != "ogg":
        assert (back - sig.clamp(-1, 1)).abs().max() < 1e-4


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_appears_whole_or_not_at_all(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(KeyboardInterrupt):
        with AudioWriter(path, 16000) as writer:
            writer.write(torch.zeros(100000))
            raise KeyboardInterrupt
    with pytest.raises(AudioError, match=rf"a.{suffix}: has NaN"):
        with AudioWriter(path, 16000) as writer:
            writer.write(torch.zeros(100000))
            writer.write(torch.tensor([0.0, torch.nan]))
    with pytest.raises(AudioError, match=rf"a.{suffix}: is empty"):
        with AudioWriter(path, 16000) as writer:
            writer.write(torch.zeros(0))
    assert list(tmp_path.iterdir()) == []
    write_audio(path, torch.zeros(10), 16000)
    with pytest.raises(ValueError, match="must be"):
        with AudioWriter(path, 16000) as writer:
            writer.write(torch.zeros(100000))
            writer.write(torch.zeros(1, 10))
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert len(read_audio(path)[0]) == 10


def test_a_full_disk_is_named(tmp_path):
    code = """
import resource, sys
import torch
from speechbrain_focalcodec.audio.stream import AudioWriter
from speechbrain_focalcodec.errors import AudioError

resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
for suffix in ("wav", "flac", "ogg"):
    try:
        with AudioWriter(f"{sys.argv[1]}/a.{suffix}", 16000) as writer:
            for _ in range(10):
                writer.write(torch.rand(50000))
    except AudioError as error:
        print(error)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert out.count("cannot be written") == 3
    assert list(tmp_path.iterdir()) == []


def test_invalid_signals_are_not_written(tmp_path, monkeypatch):
    with pytest.raises(AudioError, match="a.mp3: cannot write"):
        AudioWriter(tmp_path / "a.mp3", 16000)
    with pytest.raises(AudioError, match="a.wav: cannot be written"):
        with AudioWriter(tmp_path / "a.wav", 0) as writer:
            writer.write(torch.zeros(10))
    monkeypatch.setattr(audio_stream, "_MAX_WAV_SAMPLES", 15)
    with pytest.raises(AudioError, match="a.wav: a WAV file cannot hold"):
        with AudioWriter(tmp_path / "a.wav", 16000) as writer:
            writer.write(torch.zeros(10))
            writer.write(torch.zeros(10))
    assert list(tmp_path.iterdir()) == []


def test_a_writer_is_used_in_its_block(tmp_path):
    writer = AudioWriter(tmp_path / "a.wav", 16000)
    with pytest.raises(ValueError, match="within a with block"):
        writer.write(torch.zeros(10))
    with writer:
        writer.write(torch.zeros(10))
    with pytest.raises(ValueError, match="within a with block"):
        writer.write(torch.zeros(10))
    assert len(read_audio(writer.path)[0]) == 10
