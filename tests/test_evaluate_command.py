"""`focalcodec evaluate` as it is called, and the examples of its page."""

import re
import sys
import types
from pathlib import Path

import pytest
import soundfile
from evaluation_fakes import (
    Converter,
    Gain,
    Level,
    make_data,
    make_speakers,
    rows_of,
    without_pictures,
)
from typer.testing import CliRunner

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus.sources import open_source
from speechbrain_focalcodec.metrics.harness import evaluate_codec
from speechbrain_focalcodec.metrics.registry import make_metrics


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "in")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture
def cli(monkeypatch):
    """The command with this file's systems and metrics."""
    metrics = types.ModuleType("registry")
    systems = types.ModuleType("registry")
    asked = []

    def make_metrics(names, options):
        asked.append((names, options))
        return [Level(name) for name in names]

    def make_system(spec, **options):
        asked.append((spec, options))
        if spec == "nothing":
            raise ValueError("nothing: no such codec")
        return (Converter if spec == "converter" else Gain)(spec)

    metrics.make_metrics, systems.make_system = make_metrics, make_system
    metrics.MetricOptions = dict
    package = "speechbrain_focalcodec.metrics"
    monkeypatch.setitem(sys.modules, f"{package}.registry", metrics)
    monkeypatch.setitem(sys.modules, f"{package}.systems.registry", systems)

    def run(*arguments):
        given = ["evaluate", *map(str, arguments), "--device", "cpu"]
        return CliRunner().invoke(app, [*given, "--workers", "0"])

    run.asked = asked
    return run


def test_command(cli, data, tmp_path):
    out = tmp_path / "out"
    models = ["--model", "one", "--model", "two"]
    given = [data, "--out", out, *models, "--metrics", "level, loud"]
    given += ["--whisper", "tiny.pt", "--metric-model", "utmos=a/b=c"]
    result = cli(*given, "--limit", 2)
    assert result.exit_code == 0, result.output
    options = {
        "device": "cpu",
        "whisper": Path("tiny.pt"),
        "sources": {"utmos": "a/b=c"},
    }
    assert cli.asked == [
        (["level", "loud", "wer"], options),
        ("one", {"device": "cpu"}),
        ("two", {"device": "cpu"}),
    ]
    assert (out / "summary.md").read_text() in result.output
    assert len(rows_of(out)) == 4
    few = [data, "--out", tmp_path / "few", "--min-duration", 0.7]
    assert cli(*few, "--metrics", "level").exit_code == 0
    assert len(rows_of(tmp_path / "few")) == 2
    result = cli(*given, "--limit", 3)
    assert result.exit_code == 1
    assert "limit was 2, not 3" in result.stderr
    assert cli(*given, "--limit", 3, "--overwrite").exit_code == 0
    result = cli(data, "--out", out, "--model", "nothing")
    assert result.exit_code == 1 and "no such codec" in result.stderr
    assert "Traceback" not in result.output
    assert cli(data / "none", "--out", out).exit_code == 2
    assert cli(data, "--out", out, "--metric-model", "utmos").exit_code == 2


def test_command_that_can_read_nothing_fails(cli, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"RIFF")
    given = [tmp_path / "bad", "--out", tmp_path / "out", "--model", "one"]
    result = cli(*given, "--metrics", "level")
    assert result.exit_code == 1
    assert "1 could not be read" in result.stdout


def test_command_names_what_it_leaves_out(cli, tmp_path):
    speakers = make_speakers(tmp_path / "speakers")
    given = [speakers, "--out", tmp_path / "out", "--voice-conversion"]
    given += ["--model", "gain", "--model", "converter", "--metrics", "level"]
    result = cli(*given)
    assert result.exit_code == 0, result.output
    assert result.stderr == "left out, not for converted voices: gain\n"


def test_command_stops_in_one_line(cli, data, tmp_path, monkeypatch):
    def interrupted(self, sigs):
        if self.batches:
            raise KeyboardInterrupt
        return resynthesize(self, sigs)

    resynthesize = Gain.resynthesize
    monkeypatch.setattr(Gain, "resynthesize", interrupted)
    result = cli(data, "--out", tmp_path / "out", "--metrics", "level")
    assert result.exit_code == 130
    assert "stopped; run the same command again to go on" in result.stderr
    monkeypatch.undo()


def test_command_with_the_bundled_model(monkeypatch, tmp_path):
    """The same with real metrics and systems, and one in memory."""
    monkeypatch.undo()  # no stand-ins
    demo = open_source("speechbrain_focalcodec/assets")
    out = tmp_path / "out"
    given = ["evaluate", str(demo.path), "--out", str(out), "--workers", "0"]
    given += ["--model", "original", "--model", "focalcodec_mini_50hz"]
    given += ["--model", "feats:focalcodec_mini_50hz"]
    given += ["--metrics", "stoi", "--device", "cpu"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "| original | 256.00 | 1.000 [1.000, 1.000] |" in result.output
    assert "Differences from focalcodec_mini_50hz" in result.output
    (first, second, feats) = rows_of(out)
    assert float(first["stoi"]) == pytest.approx(1)
    assert 0.6 < float(second["stoi"]) < 1
    assert float(second["bits"]) == 301 * 13
    # Without the quantizer nothing is coded, and little is lost.
    assert feats["bits"] == ""
    assert float(second["stoi"]) < float(feats["stoi"]) < 1
    codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    at = tmp_path / "memory"
    summary = evaluate_codec(codec, demo, make_metrics(["stoi"]), at)
    [mini] = summary.systems
    assert mini.figures["stoi"].value == float(second["stoi"])
    assert 0 < mini.codes["code_usage"] <= 301 / 8192
    assert mini.fingerprint.startswith(codec.fingerprint)


def test_the_examples_of_the_documentation(tmp_path, monkeypatch):
    text = Path("docs/evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    codec, metric, script = blocks
    (tmp_path / "my_codecs.py").write_text(codec)
    (tmp_path / "my_metrics.py").write_text(metric)
    monkeypatch.syspath_prepend(tmp_path)
    speech, rate = soundfile.read("speechbrain_focalcodec/assets/demo.flac")
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "a.wav", speech[: 2 * rate], rate)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(script, "docs/evaluation.md", "exec"), names)
    mu_law, mini = names["summary"].systems
    assert mu_law.name == "mu-law"
    assert mu_law.bitrate == pytest.approx(64000)
    # It loses everything above 4 kHz.
    assert mu_law.figures["stoi"].value > 0.98
    assert 5 < mu_law.figures["snr"].value < 40
    assert mini.figures["snr"].value < mu_law.figures["snr"].value
    assert len(rows_of(tmp_path / "results")) == 2
