"""The demo command."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.audio import read_audio, write_audio
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.tokens.files import load_tokens

PARITY = Path(__file__).parent / "parity"


def run_demo(*args, model="offline_50hz"):
    return CliRunner().invoke(
        app, ["demo", *map(str, args), "--model", str(PARITY / model)]
    )


def test_bundled_clip():
    info = soundfile.info(DEMO_CLIP)
    assert (info.samplerate, info.channels) == (16000, 1)
    assert 5 <= info.duration <= 8
    assert DEMO_CLIP.stat().st_size < 200_000


@pytest.mark.parametrize(
    ("model", "rate"), [("offline_50hz", 16000), ("causal_50hz", 24000)]
)
def test_demo_of_the_bundled_clip(tmp_path, model, rate):
    result = run_demo("--out", tmp_path / "out", model=model)
    assert result.exit_code == 0, result.output
    tokens = load_tokens(tmp_path / "out" / "tokens.focal")
    rec_sig, rec_rate = read_audio(tmp_path / "out" / "reconstruction.wav")
    picture = tmp_path / "out" / "spectrograms.png"
    assert len(list(picture.parent.iterdir())) == 3
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert rec_rate == rate
    assert len(rec_sig) * 16000 == soundfile.info(DEMO_CLIP).frames * rate

    rows = {line[:12].strip(): line[12:] for line in result.output.splitlines()}
    assert rows["Model"] == model
    assert rows["Token rate"] == "50 Hz"
    count, _, rest = rows["Tokens"].partition(" of ")
    assert int(count) == len(tokens.toks)
    first = rest.partition(": ")[2].removesuffix(" ...").split()
    assert [int(tok) for tok in first] == tokens.toks[: len(first)].tolist()
    bits = np.log2(tokens.codebook_size)
    assert rows["Bitrate"] == f"{0.05 * bits:.2f} kbit/s"
    for name in ("Encoding", "Decoding"):
        assert float(rows[name].split()[2]) > 0
    assert -1 <= float(rows["STOI"].split()[0]) <= 1


def test_demo_of_live_audio(tmp_path):
    write_audio(tmp_path / "clip.wav", 0.1 * torch.randn(16000), 16000)
    out = tmp_path / "out"
    result = run_demo(
        tmp_path / "clip.wav", "--stream", "--out", out, model="causal_50hz"
    )
    assert result.exit_code == 0, result.output
    rows = {line[:12].strip(): line[12:] for line in result.output.splitlines()}
    assert rows["Chunks"].startswith("12 of 80 ms")
    assert "heard" in rows["Latency"]
    codec = FocalCodec.from_pretrained(PARITY / "causal_50hz")
    sig, _ = read_audio(tmp_path / "clip.wav")
    with torch.no_grad():
        want = codec.resynthesize(sig[None])[0]
    rec_sig, _ = read_audio(out / "reconstruction.wav")
    torch.testing.assert_close(rec_sig, want, rtol=0, atol=1e-3)


def test_demo_streams_causal_models_alone(tmp_path):
    result = run_demo("--stream", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "causal" in result.stderr
    assert not (tmp_path / "out").exists()


def test_demo_of_a_file_of_another_kind(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, size=(44100, 2))
    soundfile.write(tmp_path / "stereo.wav", noise, 44100)
    result = run_demo(tmp_path / "stereo.wav", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "stereo.wav (1.00 s)" in result.output
    rec_sig, _ = read_audio(tmp_path / "out" / "reconstruction.wav")
    assert len(rec_sig) == 16000


def test_demo_without_a_measurable_stoi(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "short.wav", np.full(3000, 0.1), 16000)
    result = run_demo(tmp_path / "short.wav", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "not measured: The reference has too little" in result.output

    monkeypatch.setitem(sys.modules, "pystoi", None)
    result = run_demo("--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "speechbrain_focalcodec[metrics]" in result.output


def test_demo_names_missing_files(tmp_path):
    for args, name in [
        ((tmp_path / "none.wav",), "none.wav"),
        (("--device", "nonsense"), "nonsense"),
    ]:
        result = run_demo(*args, "--out", tmp_path / "out")
        assert result.exit_code != 0
        assert name in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_help_is_for_users():
    result = CliRunner().invoke(app, ["demo", "--help"])
    assert result.exit_code == 0
    assert "Turn a clip into tokens and back" in result.output
    assert ">>>" not in result.output
