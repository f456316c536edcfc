"""The benchmarks beside the published code; a stand-in takes its place."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from speechbrain_focalcodec import FocalCodec

ROOT = Path(__file__).parents[1]
# As for a script that is run: the benchmarks import each other.
sys.path.append(str(ROOT / "benchmarks"))
published = importlib.import_module("published")
speed = importlib.import_module("speed")
streaming = importlib.import_module("streaming")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder like a clone of the published repository."""
    package = tmp_path / "clone" / "focalcodec"
    package.mkdir(parents=True)
    (package / "codec.py").touch()
    (package / "__init__.py").write_text(
        "from speechbrain_focalcodec.compat import FocalCodec\n"
    )
    monkeypatch.delitem(sys.modules, "focalcodec", raising=False)
    yield package.parent
    sys.modules.pop("focalcodec", None)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module, name, case in (
        (speed, "build_full", "offline_50hz"),
        (streaming, "build_full_causal", "causal_50hz"),
    ):
        folder = ROOT / "tests" / "parity" / case
        monkeypatch.setattr(
            *(module, name),
            lambda folder=folder: FocalCodec.from_pretrained(folder),
        )


@pytest.fixture
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def run(command, *options):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*map(str, options)], catch_exceptions=False)


def test_speed_in_turns(clone, tmp_path):
    out = tmp_path / "speed.json"
    options = "--seconds", "0.5,1", "--repeats", 2, "--out", out
    result = run(speed.main, "--published", clone, *options)
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["published"]
    assert [(row["stage"], row["seconds"]) for row in rows] == [
        *(("encode", 0.5), ("decode", 0.5), ("encode", 1.0), ("decode", 1.0)),
    ]
    for row in rows:
        assert list(row["walls"]) == ["published", "compat", "this package"]
        assert all(len(walls) == 2 for walls in row["walls"].values())
        assert f"{row['stage']}, {row['seconds']:g} s" in result.output
    best = min(rows[0]["walls"]["published"])
    assert f"{best:.3f}" in result.output


def test_chunks_in_turns(clone, tmp_path, threads):
    out = tmp_path / "chunks.json"
    options = "--chunks", 5, "--warm", 2, "--threads", 1, "--out", out
    result = run(streaming.main, "--published", clone, *options)
    assert result.exit_code == 0, result.output
    walls = json.loads(out.read_text())["published"]
    assert [len(times) for times in walls.values()] == [5, 5, 5]
    assert "| published    | 5 " in result.output
    assert "| compat       | 5 " in result.output


@torch.no_grad()
def test_all_models_have_the_same_weights(clone):
    codec = speed.build_full()
    models = published.build_both(codec, clone)
    sig = torch.randn(1, 8000)
    for model in models.values():
        assert torch.equal(model.sig_to_toks(sig), codec.sig_to_toks(sig))


def test_what_is_no_clone_is_named(tmp_path):
    result = run(speed.main, "--published", tmp_path, "--seconds", 1)
    assert result.exit_code == 2
    assert "is no clone of lucadellalib/focalcodec" in result.output
