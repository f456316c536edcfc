"""Memory does not grow with the length of a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LONG_AUDIO = Path(__file__).parents[1] / "benchmarks" / "long_audio.py"


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    """The mini model; the full size is measured by `make benchmark-long`."""
    out = tmp_path / "memory.json"
    command = [sys.executable, str(LONG_AUDIO), "memory", "--minutes", "4,40"]
    subprocess.run(
        [*command, "--model", "focalcodec-mini", "--out", str(out)], check=True
    )
    results = json.loads(out.read_text())["results"]
    short, long = (row["peak_mib"] for row in results)
    assert long < short + 100  # MiB; the waveform alone takes 147 more
