"""The benchmark of the entropy loss, on a small codebook."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
# As for a script that is run: the benchmarks import each other.
sys.path.append(str(ROOT / "benchmarks"))
benchmark = importlib.import_module("entropy_loss")


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(benchmark.entropy_loss)
    return lambda *options: CliRunner().invoke(app, options)


def test_both_forms_give_the_same_loss():
    naive, ours = (
        benchmark.measure(form, 64, 50, 1, "cpu")
        for form in ("naive", "factorised")
    )
    assert ours.loss == pytest.approx(naive.loss, rel=1e-4)
    assert not ours.extrapolated and ours.seconds > 0


def test_a_straight_line_is_continued():
    costs = [
        benchmark.Cost("naive", 64, n, 2.0 + 3 * n, 0.5 * n, -1.0)
        for n in (5, 10, 20)
    ]
    cost = benchmark.extrapolate(costs, 1000)
    assert cost.memory_mib == pytest.approx(3002)
    assert cost.seconds == pytest.approx(500)
    assert cost.extrapolated and cost.frames == 1000
    unknown = benchmark.Cost("naive", 64, 30, None, 15.0, -1.0)
    assert benchmark.extrapolate([*costs, unknown], 40).memory_mib is None


def test_the_command_marks_what_was_not_run(command, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "measure_apart", benchmark.measure)
    path = tmp_path / "out.json"
    options = "--bits 5 --frames 40 --naive-frames 10,20 --repeats 1".split()
    result = command(*options, "--out", str(path))
    assert result.exit_code == 0, result.output
    rows = [x for x in result.stdout.splitlines() if x.startswith("| ")]
    assert len(rows) == 7
    assert [i for i, row in enumerate(rows) if "extrapolated" in row] == [6]
    costs = json.loads(path.read_text())["results"]
    assert [cost["frames"] for cost in costs] == [10, 20, 40, 10, 20, 40]
    assert "two sizes" in command("--naive-frames", "10").output


def test_a_process_of_its_own_measures():
    cost = benchmark.measure_apart("factorised", 32, 20, 1, "cpu")
    assert (cost.form, cost.codes, cost.frames) == ("factorised", 32, 20)
