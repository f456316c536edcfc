"""The benchmarks of tasks on tokens."""

import csv
import importlib
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from make_corpus import make_corpus
from trained_tasks import trained_asr, trained_tts
from typer.testing import CliRunner

# As for a script that is run: the benchmarks import each other.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
downstream = importlib.import_module("downstream")
synthesis = importlib.import_module("synthesis")


def app(main):
    """A command as `typer.run` makes it."""
    made = typer.Typer()
    made.command()(main)
    return made


def test_runs_are_made_once_and_compared(tmp_path, monkeypatch):
    commands = []

    def run(command, check):
        assert check
        options = dict(o[2:].split("=") for o in command if o[:2] == "--")
        commands.append((options["input"], options["seed"]))
        folder = tmp_path / f"{options['input']}_{options['seed']}"
        folder.mkdir()
        wer = 20.0 if options["input"] == "tokens" else 10.0
        lines = [
            {"split": "train", "step": 5, "epoch": 1, "loss": 2.0},
            {
                "split": "test",
                "step": 5,
                "epoch": 1,
                "loss": 1.0,
                "wer": wer + int(options["seed"]),
            },
        ]
        text = "\n".join(map(json.dumps, lines))
        (folder / "metrics.jsonl").write_text(text)

    monkeypatch.setattr(downstream.subprocess, "run", run)
    # A training takes 60 s.
    clock = itertools.count(step=60)
    own = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(downstream, "time", own)
    arguments = ["r.py", "y.yaml", "data", str(tmp_path)]
    arguments += ["--inputs", "tokens,log_mel", "--seeds", "1,3"]
    for _ in range(2):
        result = CliRunner().invoke(app(downstream.main), arguments)
        assert result.exit_code == 0, result.output
        assert "tokens  | 22.0 ± 1.4 | 2" in result.output
        assert "log_mel | 12.0 ± 1.4 | 2" in result.output
    assert sorted(commands) == [
        ("log_mel", "1"),
        ("log_mel", "3"),
        ("tokens", "1"),
        ("tokens", "3"),
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [run["wer"] for run in report["runs"]] == [21, 11, 23, 13]
    assert {run["seconds"] for run in report["runs"]} == {60}


def test_a_run_without_a_test_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(downstream.subprocess, "run", lambda *_, **__: None)
    arguments = ["r.py", "y.yaml", "data", str(tmp_path), "--seeds", "1"]
    result = CliRunner().invoke(app(downstream.main), arguments)
    assert result.exit_code
    assert "has left no test" in str(result.exception)


@pytest.fixture
def an4(tmp_path):
    """Two utterances of AN4's test."""
    return make_corpus("AN4", tmp_path / "AN4", ["an4test_clstk"], 1, 2)


def test_synthesis_beside_originals(an4, tmp_path, monkeypatch):
    monkeypatch.setattr(
        synthesis,
        "WhisperTranscriber",
        lambda _: lambda sig, rate: "Utterance",
    )
    torch.manual_seed(0)
    model = trained_tts(tmp_path / "tts", max_seconds=0.3)
    asr = trained_asr(tmp_path / "asr" / "model")
    out = tmp_path / "out"
    arguments = [str(model), str(an4), "--out", str(out), "--whisper", "w"]
    arguments += [
        "--chooser",
        str(asr),
        "--recognizer",
        str(asr),
        "--tries",
        "2",
    ]
    arguments += ["--listen", "1"]
    result = CliRunner().invoke(app(synthesis.main), arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    figures = json.loads((out / "report.json").read_text())
    assert list(figures) == [
        "original",
        "resynthesis",
        "synthesis",
        "best of 2",
    ]
    # Its texts are "UTTERANCE" and a number.
    assert figures["original"]["WER by Whisper"] == pytest.approx(50)
    # All but the last of ten characters.
    assert figures["original"]["CER by Whisper"] == pytest.approx(10)
    assert figures["synthesis"]["seconds"] <= 0.3
    assert "WER by Whisper" in result.output
    with open(out / "transcripts.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 2 * 4 * 2
    assert len(list((out / "audio").glob("*.flac"))) == 4


def test_each_recogniser_is_compared_in_its_own_spelling():
    ours = synthesis.count_errors("mine", "TWO ONE go", "two  NINE GO")
    assert (ours.edits, ours.words) == (1, 3)
    # "21 go", in the spelling of Whisper's authors.
    theirs = synthesis.count_errors("Whisper", "TWO ONE go", "21 go")
    assert (theirs.edits, theirs.words) == (0, 2)
