"""The benchmark of live streams, on tiny models."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.streaming import StreamingResynthesizer

ROOT = Path(__file__).parents[1]
# As for a script that is run: the benchmarks import each other.
sys.path.append(str(ROOT / "benchmarks"))
streaming = importlib.import_module("streaming")
systems = importlib.import_module("systems")

CAUSAL = ROOT / "tests" / "parity" / "causal_50hz"


def run(*options):
    app = typer.Typer()
    app.command()(streaming.main)
    return CliRunner().invoke(app, [*map(str, options)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_chunks_and_streams_side_by_side(monkeypatch, tmp_path):
    build = systems.CAUSAL_MODELS.copy()
    build["focalcodec-full-causal"] = lambda: FocalCodec.from_pretrained(CAUSAL)
    monkeypatch.setattr(streaming, "CAUSAL_MODELS", build)
    out = tmp_path / "new" / "streaming.json"
    shown = run(
        *("--models", "focalcodec-full-causal,focalcodec_mini_50hz"),
        *("--options", "int8", "--threads", "1", "--chunks", 5, "--warm", 1),
        *("--streams", 2, "--steps", 3, "--out", out),
    )
    assert shown.exit_code == 0
    saved = json.loads(out.read_text())
    assert saved["machine"]["torch"] == torch.__version__
    found = {(row["model"], row["option"]): row for row in saved["results"]}
    exact = found["focalcodec-full-causal", "float32"]
    assert len(exact["seconds"]) == 5
    assert (exact["threads"], exact["chunk_ms"]) == (1, 80)
    for option in ("float32", "int8"):
        row = found["focalcodec-full-causal", option]
        assert min(row["seconds"]) > 0
        assert set(row["streams_p95_ms"]) <= {"1", "2"}
        row["streams_p95_ms"] = {
            int(n): x for n, x in row["streams_p95_ms"].items()
        }
        result = streaming.Result(**row)
        factor = sum(row["seconds"]) / (5 * 0.08)
        assert result.real_time_factor == pytest.approx(factor)
        times = [n for n, p95 in result.streams_p95_ms.items() if p95 < 80]
        assert result.streams == max(times, default=0)
    # An offline model is skipped by name.
    assert found["focalcodec_mini_50hz", "float32"]["skipped"]
    assert "Skipped: focalcodec_mini_50hz, float32: an offl" in shown.stdout
    assert "| focalcodec-full-causal | int8 " in shown.stdout


@pytest.mark.parametrize(
    ("limit_ms", "most", "limit"), [(80, 40, 999), (80, 32, 32), (1, 0, 999)]
)
def test_search_of_the_most_streams(limit_ms, most, limit):
    """A step of n streams takes 2 n - 0.5 ms."""
    result = streaming.Result("a", "float32", 2, limit_ms)
    streaming.search_streams(result, lambda n: 2 * n - 0.5, limit)
    assert most - most // 20 <= result.streams <= most
    assert len(result.streams_p95_ms) < 14


def test_windows_are_full_before_chunks_count(monkeypatch):
    codec = FocalCodec.from_pretrained(CAUSAL)
    pushed = []

    class Session(StreamingResynthesizer):
        def push(self, x):
            pushed.append(len(x))
            return super().push(x)

    monkeypatch.setattr(streaming, "StreamingResynthesizer", Session)
    assert len(streaming.time_chunks(codec, 2, warm=3)) == 2
    assert pushed == [32 * 320, *[1280] * 5]


def test_the_full_size_model_is_the_released_one():
    from speechbrain_focalcodec.checkpoint import MetaWeights

    with MetaWeights():
        codec = systems.build_full_causal()
    assert round(sum(x.numel() for x in codec.parameters()) / 1e6) == 249
    assert (codec.latency, codec.codebook_size) == (80, 4096)
    assert codec.sample_rate_output == 24000
    assert streaming.full_window(codec) == 512 * 320 // 1280


def test_make_runs():
    plan = subprocess.run(
        ["make", "--dry-run", "benchmark-streaming"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    text = " ".join(plan.stdout.replace("\\\n", " ").split())
    assert "benchmarks/streaming.py --out results/streaming.json" in text
