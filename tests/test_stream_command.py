"""Live audio: the command, its devices, and the latency report."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_sounddevice import FakeSoundDevice
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.audio import devices as sound_device
from speechbrain_focalcodec.audio import read_audio, write_audio
from speechbrain_focalcodec.audio.devices import Microphone, Playback
from speechbrain_focalcodec.audio.live_resampling import StreamResampler
from speechbrain_focalcodec.audio.resampling import resample
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.errors import AudioError
from speechbrain_focalcodec.streaming import (
    StreamingResynthesizer,
    StreamingVoiceConverter,
    live,
)
from speechbrain_focalcodec.voice import VoiceReference

PARITY = Path(__file__).parent / "parity"


@pytest.fixture(scope="module")
def codec():
    return FocalCodec.from_pretrained(PARITY / "causal_50hz")


@pytest.fixture
def clip(tmp_path):
    """0.5 s: six chunks and a quarter."""
    write_audio(tmp_path / "clip.wav", noise(8000), 16000)
    return tmp_path / "clip.wav"


@pytest.fixture
def use(monkeypatch):
    """Put a fake in place of sounddevice."""

    def put(*args, **options):
        device = FakeSoundDevice(*args, **options)
        monkeypatch.setitem(sys.modules, "sounddevice", device)
        return device

    return put


def noise(num_samples):
    generator = torch.Generator().manual_seed(num_samples)
    return 0.1 * torch.randn(num_samples, generator=generator)


def stream(*args, model="causal_50hz"):
    args = [str(arg) for arg in args]
    return CliRunner().invoke(
        app,
        ["stream", *args, "--model", str(PARITY / model), "--device", "cpu"],
    )


def resynthesized(codec, sig):
    with torch.no_grad():
        return codec.resynthesize(sig[None])[0]


def rows_of(result):
    assert result.exit_code == 0, result.output
    return {line[:12].strip(): line[12:] for line in result.stdout.splitlines()}


def report_of(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def check_output(path, want):
    got, rate = read_audio(path)
    assert rate == 24000
    torch.testing.assert_close(got, want.clamp(-1, 1), rtol=0, atol=1e-4)


# Files


def test_a_file_goes_through_chunk_by_chunk(codec, clip, tmp_path):
    out = tmp_path / "out.wav"
    rows = rows_of(stream(clip, "--out", out))
    check_output(out, resynthesized(codec, read_audio(clip)[0]))
    saved = report_of(stream(clip, "--json"))
    assert saved["model"] == "causal_50hz" and saved["live"] is False
    assert (saved["chunk_ms"], saved["chunks"]) == (80, 6)
    assert saved["audio_s"] == 0.5
    assert saved["precision"] == "float32" and saved["counts"] == {}
    spread = saved["processing_ms"]
    assert 0 < spread["p50"] <= spread["p95"] <= spread["p99"] <= spread["max"]
    assert saved["heard_latency_ms"] == pytest.approx(80 + spread["p99"])
    assert saved["late"] is None
    assert rows["Chunks"] == "6 of 80 ms (0.50 s of audio)"
    assert rows["Each chunk"].startswith("p50")
    assert rows["Written to"] == str(out)


def test_a_file_of_another_rate_and_a_duration(codec, tmp_path):
    write_audio(tmp_path / "a.flac", noise(44100), 44100)
    out = tmp_path / "out.flac"
    result = stream(tmp_path / "a.flac", "--output", out, "--duration", 0.3)
    assert "(0.30 s of audio)" in rows_of(result)["Chunks"]
    sig = read_audio(tmp_path / "a.flac", 16000)[0][:4800]
    check_output(out, resynthesized(codec, sig))


def test_real_time_is_the_pace_of_a_microphone(clip):
    begin = time.perf_counter()
    rows = rows_of(stream(clip, "--realtime"))
    assert time.perf_counter() - begin > 0.5
    saved = report_of(stream(clip, "--realtime", "--json"))
    assert saved["live"] is True
    assert saved["end_to_end_real_time_factor"] >= 1
    assert saved["delay_ms"]["p50"] >= saved["processing_ms"]["p50"] - 1
    assert saved["late"] >= 0 and rows["Late"].split()[0].isdecimal()


def test_a_chunk_comes_when_it_would_be_recorded(clip):
    with live.AudioReader(clip, 16000) as reader:
        pieces = live.file_pieces(reader, 1280, realtime=True)
        times = [(time.perf_counter(), ready) for _, ready in pieces]
    assert all(now >= ready for now, ready in times)
    gaps = np.diff([ready for _, ready in times])
    assert gaps == pytest.approx([0.08] * 5 + [0.02])


def test_options_reach_the_model(clip, tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    options = "--precision", "int8", "--threads", 3
    assert "int8" in rows_of(stream(clip, *options))["Model"]
    assert threads == [3]
    assert report_of(stream(clip, *options, "--json"))["precision"] == "int8"


def test_a_reference_voice_is_heard(codec, clip, tmp_path):
    voice = tmp_path / "voice"
    voice.mkdir()
    shutil.copy(DEMO_CLIP, voice)
    out = tmp_path / "out.wav"
    rows_of(stream(clip, "--reference-voice", voice, "--output", out))
    reference = VoiceReference.from_sigs(codec, [read_audio(DEMO_CLIP)[0]])
    session = StreamingVoiceConverter(codec, reference)
    sig = read_audio(clip)[0]
    check_output(out, torch.cat([session.push(sig), session.flush()]))


def test_bad_input_is_one_line(clip, tmp_path):
    whole = clip.read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:5000])
    (tmp_path / "mine.wav").write_text("mine")
    out = tmp_path / "out.wav"
    for args, model, message in [
        ((clip,), "offline_50hz", "focalcodec_50hz_4k_causal"),
        ((tmp_path / "none.wav",), "causal_50hz", "none.wav: no such file"),
        ((tmp_path / "cut.wav",), "causal_50hz", "cut.wav: is cut short"),
        ((clip, "--output", clip), "causal_50hz", "its own output"),
        (
            (clip, "--output", tmp_path / "mine.wav"),
            "causal_50hz",
            "mine.wav: exists; give --overwrite",
        ),
        ((clip, "--output", "a.txt"), "causal_50hz", "cannot write a .txt"),
        ((tmp_path,), "causal_50hz", "is a folder"),
    ]:
        if "--output" not in args:
            args = (*args, "--output", out)
        result = stream(*args, model=model)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not out.exists()
    assert clip.read_bytes() == whole
    assert (tmp_path / "mine.wav").read_text() == "mine"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_durations_are_positive(clip, seconds):
    result = stream(clip, "--duration", seconds)
    assert result.exit_code == 2
    assert "--duration" in result.stderr


# The microphone


def test_the_microphone_for_a_time(codec, use, tmp_path):
    device = use(noise(20000))
    out = tmp_path / "out.wav"
    result = stream("microphone", "--duration", 0.5, "--output", out, "--json")
    assert "listening at 16000 Hz" in result.stderr
    check_output(out, resynthesized(codec, noise(20000)[:8000]))
    saved = report_of(result)
    assert (saved["chunks"], saved["audio_s"]) == (6, 0.5)
    assert saved["counts"] == {"input_overflows": 0, "input_lost_s": 0}
    assert saved["other_latency_ms"] == pytest.approx(20)
    assert saved["late"] is not None
    assert device.is_closed


def test_ctrl_c_ends_the_recording_in_good_order(codec, use, tmp_path):
    device = use(noise(5000))
    device.on_start = lambda: signal.raise_signal(signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out.wav"
    result = stream("microphone", "--output", out)
    assert "(0.31 s of audio)" in rows_of(result)["Chunks"]
    check_output(out, resynthesized(codec, noise(5000)))
    assert device.is_closed
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_breaks_off():
    with pytest.raises(KeyboardInterrupt), live.until_interrupt() as pressed:
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        signal.raise_signal(signal.SIGINT)


def test_a_file_that_is_stopped_leaves_a_whole_output(
    clip, tmp_path, monkeypatch
):
    """Ctrl-C within the third of six chunks and a quarter."""
    push, chunks = StreamingResynthesizer.push, []

    def press(self, sig):
        # The two chunks of the warm-up are not the file's.
        chunks.append(len(sig))
        if len(chunks) == 3 + 3:
            signal.raise_signal(signal.SIGINT)
        return push(self, sig)

    monkeypatch.setattr(StreamingResynthesizer, "push", press)
    output = tmp_path / "out.wav"
    command = ["stream", str(clip), "--output", str(output)]
    model = ["--model", str(PARITY / "causal_50hz"), "--device", "cpu"]
    result = CliRunner().invoke(app, command + model)
    assert result.exit_code == 130
    *_, line = result.stderr.splitlines()
    assert line == (
        f"stopped after 0.24 s of {clip}: {output} is whole up to there; "
        "--overwrite begins anew"
    )
    sig, rate = read_audio(output)
    assert len(sig) / rate == pytest.approx(0.24)


@pytest.mark.parametrize("device_rate", [48000, 44100, 8000])
def test_a_microphone_of_another_rate(codec, use, tmp_path, device_rate):
    sig = noise(device_rate // 2)
    device = use(sig, rates=(), device_rate=device_rate)
    device.on_start = lambda: signal.raise_signal(signal.SIGINT)
    out = tmp_path / "out.wav"
    result = stream("microphone", "--output", out)
    assert rows_of(result)["Chunks"] == "6 of 80 ms (0.50 s of audio)"
    assert f"listening at {device_rate} Hz" in result.stderr
    want = resample(sig, device_rate, 16000)
    check_output(out, resynthesized(codec, want))


def test_lost_samples_are_reported(use, tmp_path):
    """Two seconds wait for a model that is busy; more is lost."""
    device = use(noise(48000))
    device.overflows = 2
    device.on_start = lambda: signal.raise_signal(signal.SIGINT)
    saved = report_of(stream("microphone", "--json"))
    assert saved["counts"] == {"input_overflows": 2, "input_lost_s": 1}
    assert saved["audio_s"] == 2
    # They came all at once.
    assert saved["late"] > 0
    device.overflows = 2
    rows = rows_of(stream("microphone"))
    assert rows["Devices"] == "input overflows 2, input lost s 1"


def test_a_microphone_without_samples(use, monkeypatch):
    device = use()
    monkeypatch.setattr(sound_device, "DEVICE_TIMEOUT", 0.05)
    result = stream("microphone")
    assert result.exit_code == 1
    assert "the microphone gave nothing" in result.stderr
    assert device.is_closed


def test_no_audio_is_no_report_of_figures(use, tmp_path):
    device = use()
    device.on_start = lambda: signal.raise_signal(signal.SIGINT)
    assert rows_of(stream("microphone"))["Each chunk"] == "none"
    result = stream("microphone", "--output", tmp_path / "out.wav")
    assert "microphone: nothing was recorded" in result.stderr


def test_without_the_package(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    for args in (("microphone",), (clip, "--play")):
        result = stream(*args)
        assert result.exit_code == 1
        assert "pip install 'speechbrain_focalcodec[live]'" in result.stderr
        assert result.stderr.count("\n") == 1


def test_without_the_library(monkeypatch, tmp_path):
    code = "raise OSError('PortAudio library not found')"
    (tmp_path / "sounddevice.py").write_text(code)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    result = stream("microphone")
    assert result.exit_code == 1
    assert "PortAudio library not found; install PortAudio" in result.stderr


def test_without_a_device(use, clip):
    device = use()
    device.kinds = []
    for args, name in (
        (("microphone",), "no microphone was found"),
        ((clip, "--play"), "no loudspeaker was found"),
    ):
        result = stream(*args)
        assert result.exit_code == 1
        assert name in result.stderr and "connect one" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_device_that_is_taken(use):
    device = use()
    device.refusal = "Device unavailable"
    for kind in (Microphone, Playback):
        with (
            pytest.raises(AudioError, match="cannot be opened .Device unav"),
            kind(16000),
        ):
            pass


# The loudspeaker


def test_output_is_played(codec, use, clip, tmp_path):
    device = use()
    out = tmp_path / "out.wav"
    saved = report_of(stream(clip, "--play", "--output", out, "--json"))
    want = resynthesized(codec, read_audio(clip)[0])
    check_output(out, want)
    played = np.concatenate(device.played)
    assert not np.isnan(played).any()
    # Silence where nothing was there; and nothing is left out.
    got = torch.from_numpy(played[played != 0])
    torch.testing.assert_close(got, want[want != 0], rtol=0, atol=1e-4)
    assert saved["live"] is True
    assert saved["other_latency_ms"] == pytest.approx(50)
    assert saved["counts"]["playback_lost_s"] == 0
    assert device.is_closed


def test_a_loudspeaker_of_another_rate(use):
    device = use(rates=())
    sig = noise(24000)
    with Playback(24000) as player:
        for part in sig.split(1920):
            player.write(part)
            time.sleep(0.001)
    played = np.concatenate(device.played)
    got = torch.from_numpy(played[played != 0])
    want = resample(sig, 24000, 48000)
    torch.testing.assert_close(got, want[want != 0])


def test_gaps_and_surplus_are_counted(use):
    device = use()
    device.plays = False
    with Playback(24000) as player:
        speaker = device.streams[0]
        speaker.pull(100)  # nothing came yet: no gap
        assert player.underruns == 0
        player.write(torch.ones(1000))
        speaker.pull(480)  # the silence at the start
        speaker.pull(900)
        speaker.pull(300)
        speaker.pull(300)  # the same gap
        assert player.underruns == 1
        player.write(torch.ones(500))
        speaker.pull(500)
        speaker.pull(1)
        assert player.underruns == 2
        for _ in range(13):
            player.write(torch.ones(2400))
        # A second and what has just come stay.
        assert player.lost_samples == 2 * 2400
        device.plays = True
        speaker.start()
    played = np.concatenate(device.played)
    assert played.sum() == 1000 + 500 + 11 * 2400
    assert played[:580].sum() == 0


# Resampling bit by bit


@given(
    st.sampled_from([8000, 16000, 22050, 24000, 44100, 48000]),
    st.sampled_from([16000, 24000, 44100, 48000]),
    st.integers(0, 4000),
    st.lists(st.integers(0, 4000), max_size=8),
)
def test_any_cutting_is_resampled_like_the_whole(
    from_rate, to_rate, length, cuts
):
    sig = noise(length)
    resampler = StreamResampler(from_rate, to_rate)
    ends = [*sorted(min(cut, length) for cut in cuts), length]
    parts = [
        resampler.push(sig[i:j])
        for i, j in zip([0, *ends[:-1]], ends, strict=True)
    ]
    got = torch.cat([*parts, resampler.flush()])
    if not length:
        assert not len(got)
        return
    want = resample(sig, from_rate, to_rate)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "rates", [(44100, 16000), (48000, 16000), (8000, 24000)]
)
def test_resampling_is_behind_by_no_more_than_it_says(rates):
    resampler = StreamResampler(*rates)
    given_s = pushed_s = 0.0
    for _ in range(20):
        pushed_s += resampler.block / rates[0]
        given_s += len(resampler.push(torch.zeros(resampler.block))) / rates[1]
        assert pushed_s - given_s <= resampler.delay + 1e-9
    assert resampler.delay <= 0.0101


def test_rates_that_would_take_a_second_are_refused():
    with pytest.raises(AudioError, match="44101 Hz cannot be .* live"):
        StreamResampler(44101, 16000)
