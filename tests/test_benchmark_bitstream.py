"""The benchmark of token files, on a tiny model and noise."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from speechbrain_focalcodec.audio import write_audio
from speechbrain_focalcodec.tokens.content import TokenFile

ROOT = Path(__file__).parent.parent
# As for a script that is run: the benchmarks import each other.
sys.path.append(str(ROOT / "benchmarks"))
benchmark = importlib.import_module("bitstream")


@pytest.fixture
def sticky():
    """Ten seconds of tokens that change now and then, and no more."""
    toks = torch.arange(50).repeat_interleave(10)
    return TokenFile(toks, "m", "0" * 64, 160000, 16000, 8192, 50.0)


def test_sizes_are_those_of_the_files(sticky):
    sizes = benchmark.measure_sizes("x", [sticky, sticky], 650.0)
    assert (sizes.files, sizes.tokens, sizes.seconds) == (2, 1000, 20.0)
    assert sizes.plain_bytes == 2 * (40 + 813)
    assert 0 <= sizes.over_nominal < 0.001
    assert sizes.smaller == 2
    assert sizes.coded_bytes < sizes.plain_bytes / 2
    assert sizes.coded_bits == 8 * (sizes.coded_bytes - 80) / 1000


def test_pieces_are_whole_and_in_order(sticky):
    parts = benchmark.cut_tokens([sticky] * 3, 7.0, 100)
    assert [len(part.toks) for part in parts] == [350] * 4
    assert parts[0].num_samples == 7 * 16000
    joined = torch.cat([part.toks for part in parts])
    assert torch.equal(joined, sticky.toks.repeat(3)[:1400])
    assert len(benchmark.cut_tokens([sticky] * 3, 7.0, 2)) == 2
    assert not benchmark.cut_tokens([sticky], 11.0, 2)


def test_the_command_measures_speech(tmp_path, parity):
    for i in range(3):
        sig = 0.1 * torch.randn(17000 + i)
        write_audio(tmp_path / "data" / f"{i}.wav", sig, 16000)
    app = typer.Typer()
    app.command()(benchmark.bitstream)
    options = ["--data", str(tmp_path / "data"), "--durations", "1,60"]
    options += ["--model", str(parity / "offline_50hz")]
    options += ["--out", str(tmp_path / "out.json")]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert "60 s: there is less speech" in result.stderr
    assert "offline_50hz, 3 files" in result.stdout
    rows = [x for x in result.stdout.splitlines() if x.startswith("| ")]
    assert rows[1].startswith("| as they are (1.1 s) | 3 ")
    assert rows[2].startswith("| 1 s ") and len(rows) == 3
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["files"] for row in results] == [3, 3]
