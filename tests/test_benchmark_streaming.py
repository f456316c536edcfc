"""The benchmark of live streams, on tiny models."""

import doctest
import importlib
import json
import subprocess
import sys
import types
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
chunks = importlib.import_module("chunks")
streaming = importlib.import_module("streaming")
streams = importlib.import_module("streams")
systems = importlib.import_module("systems")

CAUSAL = ROOT / "tests" / "parity" / "causal_50hz"


def run(*options):
    app = typer.Typer()
    app.command()(streaming.main)
    return CliRunner().invoke(app, [*map(str, options)], catch_exceptions=False)


class Pool:
    """What is asked of a pool, one stream after the other."""

    def __init__(self, codec, size):
        self.codec, self.size, self.sessions = codec, size, {}

    def join(self):
        assert len(self.sessions) < self.size
        slot = len(self.sessions)
        self.sessions[slot] = StreamingResynthesizer(self.codec)
        return slot

    def push(self, sigs):
        return {slot: self.sessions[slot].push(x) for slot, x in sigs.items()}

    def leave(self, slot):
        del self.sessions[slot]


@pytest.fixture
def pool(monkeypatch):
    module = types.ModuleType("speechbrain_focalcodec.streaming.pool")
    module.StreamPool = Pool
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture(autouse=True)
def _keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_chunks_and_streams_side_by_side(monkeypatch, pool, tmp_path):
    build = systems.CAUSAL_MODELS.copy()
    build["focalcodec-full-causal"] = lambda: FocalCodec.from_pretrained(CAUSAL)
    monkeypatch.setattr(streaming, "CAUSAL_MODELS", build)
    out, picture = tmp_path / "new" / "streaming.json", tmp_path / "a.png"
    result = run(
        *("--models", "focalcodec-full-causal,focalcodec_mini_50hz"),
        *("--options", "int8", "--threads", "1", "--chunks", 5, "--warm", 1),
        *("--read-gib", 0.01, "--streams", 2, "--steps", 3),
        *("--out", out, "--picture", picture),
    )
    assert result.exit_code == 0
    saved = json.loads(out.read_text())
    assert saved["machine"]["torch"] == torch.__version__
    found = {(row["model"], row["option"]): row for row in saved["chunks"]}
    exact = found["focalcodec-full-causal", "float32"]
    assert len(exact["seconds"]) == 5
    assert (exact["threads"], exact["chunk_ms"]) == (1, 80)
    codec = FocalCodec.from_pretrained(CAUSAL)
    size = sum(4 * x.numel() for x in codec.parameters())
    assert exact["weight_bytes"] == size
    assert exact["memory_share"] == pytest.approx(
        1000 * size / exact["ms"]["p50"] / exact["memory_rate"]
    )
    factor = sum(exact["seconds"]) / (5 * 0.08)
    assert exact["real_time_factor"] == pytest.approx(factor)
    other = found["focalcodec-full-causal", "int8"]
    assert other["ms"]["max"] > 0 and other["memory_share"] is None
    # An offline model is skipped by name.
    assert found["focalcodec_mini_50hz", "float32"]["skipped"]
    assert "Skipped: focalcodec_mini_50hz, float32: an offl" in result.stdout

    assert len(saved["streams"]) == 2
    for row in saved["streams"]:
        assert set(row["p95_ms"]) <= {"1", "2"}
        times = [n for n, p95 in row["p95_ms"].items() if p95 < 80]
        assert row["most"] == max(map(int, times), default=0)
    assert "| focalcodec-full-causal | int8 " in result.stdout
    for path in (picture, tmp_path / "a_streams.png"):
        assert path.read_bytes()[1:4] == b"PNG"


def test_without_a_pool(monkeypatch, tmp_path):
    name = "speechbrain_focalcodec.streaming.pool"
    monkeypatch.setitem(sys.modules, name, None)
    result = run(
        *("--models", CAUSAL, "--options", "", "--threads", "1"),
        *("--chunks", 1, "--warm", 0, "--read-gib", 0.001),
        *("--picture", tmp_path / "a.png"),
    )
    assert result.exit_code == 0
    assert f"Skipped: {CAUSAL}, float32: " in result.stdout
    assert name in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("limit_ms", "most", "limit"), [(80, 40, 999), (80, 32, 32), (1, 0, 999)]
)
def test_search_of_the_most_streams(limit_ms, most, limit):
    """A step of n streams takes 2 n - 0.5 ms."""
    result = streams.StreamsResult("a", "float32", 2, limit_ms)
    streams.search_streams(result, lambda n: 2 * n - 0.5, limit)
    assert most - most // 20 <= result.most <= most
    assert len(result.p95_ms) < 14


def test_windows_are_full_before_chunks_count(monkeypatch):
    codec = FocalCodec.from_pretrained(CAUSAL)
    pushed = []

    class Session(StreamingResynthesizer):
        def push(self, x):
            pushed.append(len(x))
            return super().push(x)

    monkeypatch.setattr(chunks, "StreamingResynthesizer", Session)
    assert len(chunks.time_chunks(codec, 2, warm=3)) == 2
    assert pushed == [32 * 320, *[1280] * 5]


def test_the_full_size_model_is_the_released_one():
    from speechbrain_focalcodec.checkpoint import MetaWeights

    with MetaWeights():
        codec = systems.build_full_causal()
    assert round(sum(x.numel() for x in codec.parameters()) / 1e6) == 249
    assert (codec.latency, codec.codebook_size) == (80, 4096)
    assert codec.sample_rate_output == 24000
    assert chunks.full_window(codec) == 512


def test_memory_rate_is_of_the_bytes_read(monkeypatch):
    monkeypatch.setattr(
        chunks, "time_runs", lambda run, repeats, device: [9.0, 4.0, 2.0]
    )
    assert chunks.memory_rate(2**20) == 2**20 / 2


def test_examples():
    result = doctest.testmod(chunks, extraglobs={"FocalCodec": FocalCodec})
    assert result.attempted > 0 and result.failed == 0


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
