"""The script that makes examples, and the recogniser of the benchmark."""

import importlib
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import typer
from typer.testing import CliRunner

from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import ConfigError

ROOT = Path(__file__).parents[1]
# As for a script that is run.
sys.path.append(str(ROOT / "benchmarks"))
examples = importlib.import_module("examples")
moonshine = importlib.import_module("moonshine")
DEMO = ROOT / "speechbrain_focalcodec" / "assets" / "demo.flac"


def test_examples_are_written(tmp_path):
    app = typer.Typer()
    app.command()(examples.main)
    result = CliRunner().invoke(
        app,
        [
            *(str(tmp_path / "out"), str(DEMO), "--seconds", "1"),
            *("--start", "2", "--model", "focalcodec_mini_50hz"),
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0 and "2 files beside it" in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "demo-original.flac",
        "demo-focalcodec_mini_50hz.flac",
        "demo.png",
    }
    sig, _ = soundfile.read(tmp_path / "out/demo-original.flac")
    demo, _ = soundfile.read(DEMO)
    assert (sig == demo[32000:48000]).all()
    sig, _ = read_audio(DEMO, 16000)
    codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    with torch.inference_mode():
        expected = codec.resynthesize(sig[None, 32000:48000])[0]
    name = "demo-focalcodec_mini_50hz.flac"
    found, _ = read_audio(tmp_path / "out" / name, 16000)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_missing_moonshine_names_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MOONSHINE", str(tmp_path))
    with pytest.raises(ConfigError, match="has no Moonshine; set MOONSHINE"):
        moonshine.MoonshineErrors()
