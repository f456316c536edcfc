"""The command line with pipes, devices and odd file names."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechbrain_focalcodec.audio import read_audio, write_audio
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.tokens.files import load_tokens
from speechbrain_focalcodec.utils.files import atomic_write_text

PARITY = Path(__file__).parent / "parity"
OFFLINE, CAUSAL = PARITY / "offline_50hz", PARITY / "causal_50hz"


def focalcodec(*arguments, model=OFFLINE, piped=None):
    """Run a command on the CPU with a tiny model."""
    options = ["--model", str(model), "--device", "cpu"]
    return CliRunner().invoke(
        app, [*map(str, arguments), *options], input=piped
    )


def noise(length=8000):
    return 0.1 * np.random.default_rng(0).standard_normal(length)


@pytest.fixture
def wav(tmp_path):
    """A file of half a second."""
    write_audio(tmp_path / "a.wav", noise(), 16000)
    return tmp_path / "a.wav"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_commands_read_and_write_pipes(wav, here):
    assert focalcodec("encode", wav, "a.focal").exit_code == 0
    tokens = Path("a.focal").read_bytes()
    # As a program leaves it that writes to a pipe.
    raw = wav.read_bytes()
    piped = raw[:4] + b"\xff" * 4 + raw[8:40] + b"\xff" * 4 + raw[44:]
    encoded = focalcodec("encode", "-", "-", piped=piped)
    assert encoded.stdout_bytes == tokens
    assert focalcodec("decode", "a.focal", "b.wav").exit_code == 0
    audio = Path("b.wav").read_bytes()
    assert focalcodec("decode", "a.focal", "-").stdout_bytes == audio
    assert focalcodec("decode", "-", "-", piped=tokens).stdout_bytes == audio
    resynthesized = focalcodec("resynthesize", "-", "c.wav", piped=raw)
    assert resynthesized.exit_code == 0 and resynthesized.stdout_bytes == b""
    assert Path("c.wav").read_bytes() == audio
    assert sorted(it.name for it in here.iterdir()) == [
        *("a.focal", "b.wav", "c.wav")
    ]


def test_archives_go_through_pipes(wav, here):
    result = focalcodec(
        *("encode", "-", "-", "--format", "npz"), piped=wav.read_bytes()
    )
    Path("a.npz").write_bytes(result.stdout_bytes)
    assert load_tokens("a.npz").num_samples == 8000
    described = CliRunner().invoke(
        app, ["info", "-", "--json"], input=result.stdout_bytes
    )
    assert '"num_samples": 8000' in described.stdout


def test_a_stream_reads_and_writes_pipes(wav, here):
    raw = wav.read_bytes()
    result = focalcodec("stream", wav, "--output", "b.wav", model=CAUSAL)
    assert result.exit_code == 0
    result = focalcodec(
        *("stream", "-", "--output", "-"), model=CAUSAL, piped=raw
    )
    assert result.stdout_bytes == Path("b.wav").read_bytes()
    assert "Latency" in result.stderr
    assert [item.name for item in here.iterdir()] == ["b.wav"]
    result = focalcodec("stream", "-", model=CAUSAL, piped=raw)
    assert "Latency" in result.stdout


@pytest.mark.parametrize("piped", [b"", b"RIFF", b"not audio"])
@pytest.mark.parametrize("command", ["encode", "decode", "resynthesize"])
def test_bad_pipes_give_one_line(here, command, piped):
    result = focalcodec(command, "-", "-", piped=piped)
    assert result.exit_code == 1 and result.stdout_bytes == b""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: standard input: ")


def test_standard_input_needs_an_output_name(wav, here):
    raw = wav.read_bytes()
    for target in (here, "new_folder"):
        result = focalcodec("encode", "-", target, piped=raw)
        assert result.exit_code == 1 and "name the file" in result.stderr
    result = focalcodec("encode", wav.parent, "-")
    assert result.exit_code == 1 and "is a folder" in result.stderr
    result = focalcodec("tokenize", wav.parent, "-")
    assert result.exit_code == 2
    assert list(here.iterdir()) == []


@pytest.fixture
def odd_folder(tmp_path, wav):
    """One good file among things that are none."""
    folder = tmp_path / "odd"
    folder.mkdir()
    wav.rename(folder / "good.wav")
    os.mkfifo(folder / "pipe.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    (folder / "nowhere.wav").symlink_to("missing.wav")
    (folder / "self.wav").symlink_to("self.wav")
    (folder / "parent.wav").symlink_to(folder)
    return folder


def test_devices_and_pipes_fail_alone(odd_folder, tmp_path):
    result = focalcodec("encode", odd_folder, tmp_path / "out")
    assert result.exit_code == 1
    assert [it.name for it in (tmp_path / "out").iterdir()] == ["good.focal"]
    assert "1 done, 0 skipped (output exists), 4 failed" in result.stdout
    listed = result.stderr.split("failed:\n")[1].splitlines()
    for name in ("device", "nowhere", "pipe", "self"):
        (line,) = [line for line in listed if f"{name}.wav: " in line]
        assert f"{odd_folder / name}.wav: " in line


def test_a_corpus_with_devices_and_pipes(odd_folder, tmp_path, caplog):
    result = focalcodec(
        *("tokenize", odd_folder, tmp_path / "out", "--workers", 0),
        *("--processes", 1, "--max-failures", 1),
    )
    assert result.exit_code == 0
    assert "1 utterances" in result.stdout and "3 failed" in result.stdout
    (line,) = [it for it in caplog.messages if "pipe.wav" in it]
    assert "left out" in line


def test_a_corpus_of_failures_is_a_failure(odd_folder, tmp_path):
    (odd_folder / "good.wav").write_bytes(b"RIFF")
    for _ in range(2):
        result = focalcodec(
            *("tokenize", odd_folder, tmp_path / "out", "--workers", 0),
            *("--processes", 1, "--max-failures", 1),
        )
        assert result.exit_code == 1 and "4 failed" in result.stdout


@pytest.mark.parametrize(
    "name",
    [
        *("new\nline", "tab\tand \x1b[31m", os.fsdecode(b"caf\xe9")),
        *("x" * 246, "x" * 251, "\u00e9" * 121, "a." + "y" * 245),
    ],
)
def test_strange_names_are_written(wav, tmp_path, name):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    wav.rename(folder / f"{name}.wav")
    result = focalcodec("resynthesize", folder, out)
    assert result.exit_code == 0, result.output
    assert [item.name for item in out.iterdir()] == [f"{name}.wav"]
    assert len(read_audio(out / f"{name}.wav")[0]) == 8000


@pytest.mark.parametrize("name", ["new\nline", os.fsdecode(b"caf\xe9")])
def test_strange_names_fail_in_one_line(tmp_path, name):
    (tmp_path / f"{name}.wav").write_bytes(b"RIFF")
    result = focalcodec("encode", tmp_path, tmp_path / "out")
    assert result.exit_code == 1
    first, _, last = result.stderr.splitlines()
    assert first.startswith("error: ") and last in first.replace("error:", " ")


def test_a_name_that_gets_too_long_costs_itself_only(wav, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / ("x" * 251 + ".wav")).write_bytes(wav.read_bytes())
    wav.rename(folder / "a.wav")
    result = focalcodec("encode", folder, out)
    assert result.exit_code == 1
    assert "1 done, 0 skipped (output exists), 1 failed" in result.stdout
    assert result.stderr.count("too long") == 2  # at once, and in the list
    assert [item.name for item in out.iterdir()] == ["a.focal"]


def test_names_that_are_too_long_give_one_line(wav, tmp_path):
    long = "x" * 5000
    for arguments in (
        ("encode", long, tmp_path / "a.focal"),
        ("encode", wav, tmp_path / (long + ".focal")),
        ("resynthesize", wav, tmp_path / long[:300] / "a.wav"),
    ):
        result = focalcodec(*arguments)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and "too long" in line
    result = focalcodec("encode", wav, tmp_path / "a.focal", model=long)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 1 and "neither a folder" in line
    assert len(line) < 1000


@pytest.mark.parametrize("name", ["x" * 255, "y" * 251 + ".txt", "z." * 127])
def test_the_longest_names_are_written(tmp_path, name):
    atomic_write_text(tmp_path / name, "text")
    assert [item.name for item in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match="too long"):
        atomic_write_text(tmp_path / (name + "longer"), "text")


def test_channels_and_strictness_are_options(tmp_path):
    sig = noise()
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([sig, -sig], 1), 16000)
    write_audio(tmp_path / "left.wav", sig, 16000)
    out = tmp_path / "a.focal"
    assert focalcodec("encode", tmp_path / "left.wav", out).exit_code == 0
    wanted = load_tokens(out).toks
    again = ("encode", path, out, "--overwrite")
    result = focalcodec(*again, "--strict")
    assert result.exit_code == 1 and "--channel 0" in result.stderr
    assert focalcodec(*again, "--strict", "--channel", 0).exit_code == 0
    assert (load_tokens(out).toks == wanted).float().mean() > 0.9
    result = focalcodec(*again, "--channel", 2)
    assert result.exit_code == 1 and "no channel 2" in result.stderr
    corpus = (*("tokenize", tmp_path, tmp_path / "out"), "--workers", 0)
    corpus += ("--processes", 1, "--max-failures", 1)
    assert "1 failed" in focalcodec(*corpus, "--channel", 1).stdout
    result = focalcodec(*corpus)
    assert result.exit_code == 1 and "other settings" in result.stderr
    stream = io.BytesIO()
    soundfile.write(stream, np.stack([sig, -sig], 1), 16000, format="WAV")
    result = focalcodec(
        *("stream", "-", "--strict"), model=CAUSAL, piped=stream.getvalue()
    )
    assert result.exit_code == 1 and "cancel" in result.stderr
