"""`focalcodec evaluate`: what is measured, what is kept, what is refused."""

import csv
import json
import math
import re
import shutil
import sys
import types
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from corpora import bad_files, clip
from typer.testing import CliRunner

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.corpus.report import Report
from speechbrain_focalcodec.corpus.sources import Item, open_source
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.metrics import finishing, plots
from speechbrain_focalcodec.metrics.base import Column, Metric
from speechbrain_focalcodec.metrics.bootstrap import bootstrap_difference
from speechbrain_focalcodec.metrics.dwer import WordErrorRates
from speechbrain_focalcodec.metrics.harness import evaluate, evaluate_codec
from speechbrain_focalcodec.metrics.registry import make_metrics
from speechbrain_focalcodec.metrics.report import to_markdown
from speechbrain_focalcodec.metrics.summary import (
    Figure,
    Summary,
    SystemSummary,
    difference,
    figure,
)
from speechbrain_focalcodec.metrics.systems.base import Output, System

RATIO = Column("wer", "WER %", "lower", "edits", "words", 100, 1)
MEAN = Column("stoi", "STOI", "higher", "stoi", digits=3)


class Gain(System):
    """Scales the signal; 100 bit/s."""

    sample_rate_input = 16000
    sample_rate_output = 8000
    codebook_size = 4

    def __init__(self, name="gain", gain=0.5, fingerprint="1"):
        self.name, self.gain, self.fingerprint = name, gain, fingerprint
        self.batches = []

    def encode(self, sig):
        raise AssertionError("works on batches")

    decode = bits = encode

    def resynthesize(self, sigs):
        self.batches.append([len(sig) for sig in sigs])
        return [
            Output(
                self.gain * sig[::2], len(sig) / 160, 0.25, torch.arange(3) % 2
            )
            for sig in sigs
        ]


class Converter(Gain):
    """Says how loud the target is."""

    def prepare_reference(self, sigs):
        return [len(sig) for sig in sigs]

    def convert(self, sig, reference):
        return Output(torch.full_like(sig[::2], 0.1), 10.0, 0.1)


class Copy(System):
    name = "original"
    sample_rate_input = sample_rate_output = 16000

    def encode(self, sig):
        return sig

    def decode(self, codes):
        return codes

    def bits(self, codes):
        return None


class Level(Metric):
    """Levels, but not of clips shorter than 0.6 s."""

    columns = (Column("level", "level ratio", "higher", "level"),)
    converts = True

    def __init__(self, name="level", fingerprint=""):
        self.name, self.fingerprint = name, fingerprint
        self.columns = (Column(name, name, "higher", name),)
        self.seen = []

    def __call__(self, samples):
        self.seen += samples
        return [
            {
                self.name: None
                if len(s.original) < 9600
                else (s.output.norm() / s.original.norm()),
                f"{self.name}_text": f"{s.text}, {len(s.output)}",
            }
            for s in samples
        ]


@pytest.fixture
def data(tmp_path):
    for number, seconds in enumerate((0.5, 0.8, 1.0)):
        clip(tmp_path / "in" / f"{number}.wav", seconds)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    """Pictures take long."""
    monkeypatch.setattr(
        finishing, "plot_all", lambda folder, *_: folder.mkdir(exist_ok=True)
    )


def rows_of(out):
    with open(out / "utterances.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def failures_of(out):
    with open(out / "failures.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def texts_of(out):
    """What an evaluation comes to."""
    names = ("utterances.csv", "failures.csv", "summary.json", "summary.md")
    return {name: (out / name).read_text() for name in names}


def test_three_clips_two_systems(data, tmp_path, monkeypatch):
    monkeypatch.setattr(finishing, "plot_all", plots.plot_all)
    out, gain, level = tmp_path / "out", Gain(), Level()
    summary = evaluate(
        data, [gain, Copy()], [level], out, batch_duration=2.0, save_audio=2
    )
    # Long ones first and two together; the first call warms up.
    assert gain.batches == [[12800], [16000, 12800], [8000]]
    assert {len(s.output) - len(s.original) for s in level.seen} == {0}

    first, other = summary.systems
    assert first.bitrate == pytest.approx(100)
    assert first.real_time_factor == pytest.approx(0.75 / 2.3)
    # Two of four codes, 2 to 1: 0.918 bits of 2, or of 1.
    assert list(first.codes.values()) == pytest.approx(
        [0.5, 0.459, 0.918], 1e-3
    )
    assert other.bitrate is None and other.codes == {}
    found = first.figures["level"]
    assert found.value == pytest.approx(0.5, abs=0.02) and found.count == 2
    assert other.figures["level"] == Figure(1.0, 1.0, 1.0, 2)
    gap = other.differences["level"]
    assert gap.value == pytest.approx(1 - found.value) and gap.low > 0.4

    rows = rows_of(out)
    assert [(row["id"], row["system"]) for row in rows] == [
        (number, system) for number in "012" for system in ("gain", "original")
    ]
    assert list(rows[0]) == (
        "id path duration speaker text system bits seconds level "
        "level_text".split()
    )
    assert rows[0]["level"] == "" and float(rows[2]["level"]) > 0.4
    assert rows[4]["duration"] == "1.0" and rows[4]["bits"] == "100.0"
    assert rows[4]["level_text"] == "None, 16000"
    assert failures_of(out) == []
    stored = json.loads((out / "summary.json").read_text())
    assert stored == json.loads(json.dumps(summary.to_dict()))
    assert stored["versions"]["torch"] and stored["seed"] == 0
    names = [path.name for path in sorted((out / "plots").iterdir())]
    assert names == ["bitrate.png", "level.png"]
    for path in (out / "plots").iterdir():
        assert np.ptp(matplotlib.image.imread(path)[..., :3]) > 0.5
    saved = sorted(p.relative_to(out) for p in (out / "audio").rglob("*.wav"))
    assert [str(path) for path in saved] == [
        f"audio/{system}/000{number}-{number}.wav"
        for system in ("gain", "original")
        for number in range(2)
    ]
    sig, rate = read_audio(out / saved[0])
    assert rate == 8000 and len(sig) == 4000


def test_markdown():
    columns = (MEAN, RATIO, Column("none", "none", None, "none"))
    nothing = Figure(None, None, None, 0)
    one = SystemSummary(
        *("a|b", "", 4, 0, 650.0, 0.01),
        {
            "stoi": Figure(0.81, 0.7, 0.9, 4),
            "wer": Figure(2.04, 1, 3, 3),
            "none": nothing,
        },
        {"code_usage": 0.5},
    )
    two = SystemSummary(
        *("c", "", 4, 1, 1300.0, None),
        {
            "stoi": Figure(0.7, 0.6, 0.8, 4),
            "wer": Figure(2.0, 1, 3, 4),
            "none": nothing,
        },
        {},
        {"stoi": Figure(-0.11, -0.2, 0, 4), "wer": nothing},
    )
    copy = SystemSummary(
        *("original", "", 4, 0, None, 0.0),
        {"stoi": Figure(1, 1, 1, 4), "wer": nothing, "none": nothing},
        {},
        {"stoi": Figure(0.19, 0, 0.2, 4), "wer": nothing},
    )
    text = to_markdown(
        Summary(
            *("resynthesis", "in", 4, 1, 90.0, 7, columns, {}),
            *([one, two, copy], {}, "a|b", 0.5),
        )
    )
    assert text == (
        "# Resynthesis\n\n"
        "4 utterances (1.5 min) of `in`, each of 0.5 s or more; 1 could not "
        "be read; 95 % intervals by bootstrap over utterances (seed 7).\n"
        "With c, 1 failed in whole or in part (see failures.csv).\n"
        "n: of how many utterances a figure is, if not of all.\n\n"
        "| system | kbps | STOI ↑ | WER % ↓ | codes used % | "
        "real-time factor |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| a\\|b | 0.65 | **0.810** [0.700, 0.900] | "
        "**2.0** [1.0, 3.0] (n=3) | 50.0 | 0.0100 |\n"
        "| c | 1.30 | 0.700 [0.600, 0.800] | **2.0** [1.0, 3.0] | – | – |\n"
        "| original | – | 1.000 [1.000, 1.000] | – | – | 0.0000 |\n\n"
        "Differences from a|b, on the same utterances (paired bootstrap):\n\n"
        "| system | STOI ↑ | WER % ↓ |\n| --- | --- | --- |\n"
        "| c | -0.110 [-0.200, +0.000] | – |\n"
        "| original | +0.190 [+0.000, +0.200] | – |\n"
    )


def test_figures_by_hand():
    rows = [
        {"edits": 1, "words": 4},
        {"edits": 3, "words": 12},
        {"edits": None, "words": 100},
        {"edits": 5},
    ]
    found = figure(RATIO, rows)
    # 1/4 and 3/12: every draw is 25 %.
    assert found == Figure(25.0, 25.0, 25.0, 2)
    rows[1]["edits"] = 9
    found = figure(RATIO, rows)
    # Of two utterances a quarter of the draws is all of one.
    assert found == Figure(62.5, 25.0, 75.0, 2)
    assert figure(RATIO, [{"edits": 1, "words": 0}]) == Figure(
        None, None, None, 1
    )
    assert figure(MEAN, []) == Figure(None, None, None, 0)
    # An utterance with no words and errors makes no interval infinite.
    assert figure(RATIO, [{"edits": 3, "words": 0}, rows[0]]).high < 1000


def test_differences_are_paired():
    hard = np.arange(50) % 2  # 0 or 1, the same for both
    one = {str(i): {"stoi": float(x)} for i, x in enumerate(hard)}
    two = {str(i): {"stoi": x - 0.25} for i, x in enumerate(hard)}
    del two["7"]
    two["8"]["stoi"] = None
    found = difference(MEAN, two, one)
    assert (found.value, found.low, found.high) == pytest.approx((-0.25,) * 3)
    assert found.count == 48
    ratio = bootstrap_difference(([4, 0], [4, 4]), ([0, 0], [1, 3]))
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0, 1)
    with pytest.raises(ValueError, match="1 utterances but 2"):
        bootstrap_difference(([1], None), ([1, 2], None))


def test_corrupt_clips_are_listed(data, tmp_path):
    bad = bad_files(data)
    out = tmp_path / "out"
    with pytest.raises(DataError, match="3 of 8 utterances .*max-failures"):
        evaluate(data, [Gain()], [Level()], out)
    summary = evaluate(data, [Gain()], [Level()], out, max_failures=0.6)
    assert summary["gain"].utterances == 3 and summary["gain"].failures == 0
    assert summary.unreadable == 5
    failures = failures_of(out)
    assert [row["id"] for row in failures] == sorted(bad)
    for row in failures:
        assert row["system"] == "" and bad[row["id"]] in row["reason"]
        assert Path(row["path"]).stem == row["id"]
    assert len(rows_of(out)) == 3
    assert "5 could not be read" in (out / "summary.md").read_text()


def test_what_fails_with_one_system(data, tmp_path):
    class Picky(Gain):
        def resynthesize(self, sigs):
            if any(len(sig) == 12800 for sig in sigs):
                raise RuntimeError("no such\nlength")
            return super().resynthesize(sigs)

    class Broken(Level):
        def __call__(self, samples):
            if any(len(s.original) == 16000 for s in samples):
                raise RuntimeError("too long")
            return super().__call__(samples)

    class Silent(Gain):
        def resynthesize(self, sigs):
            return [Output(sig * torch.nan, 1.0, 0.1) for sig in sigs]

    out = tmp_path / "out"
    metrics = [Level("fine"), Broken("broken")]
    both = [Picky("picky"), Gain()]
    summary = evaluate(data, both, metrics, out, max_failures=0.5)
    assert [(r["id"], r["system"], r["reason"]) for r in failures_of(out)] == [
        ("1", "picky", "RuntimeError: no such length"),
        ("2", "gain", "broken: RuntimeError: too long"),
        ("2", "picky", "broken: RuntimeError: too long"),
    ]
    assert summary["picky"].utterances == 2 and summary["picky"].failures == 2
    assert summary["gain"].utterances == 3
    # The other metric keeps what it found.
    assert summary["picky"].figures["fine"].count == 1
    assert summary["picky"].figures["broken"].count == 0
    # The same with mended systems, of those batches alone.
    gain = Gain("picky")
    metrics = [Level("fine"), Level("broken")]
    again = evaluate(data, [gain, Gain()], metrics, out, retry_failures=True)
    assert again["picky"].failures == 0 and failures_of(out) == []
    with pytest.raises(DataError, match="3 of 3 .* not finite"):
        evaluate(data, [Silent()], [], tmp_path / "other")


class Killed(Report):
    """Ends the run after some parts."""

    def __init__(self, after):
        self.after, self.begun = after, []

    def begin(self, total, done):
        self.begun.append((total, done))

    def update(self, done, seconds, failures):
        self.after -= 1
        if not self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_run_goes_on(data, tmp_path, after):
    options = {"batch_duration": 1.0, "save_audio": 3}

    def run(out, systems, report=None):
        metrics = [Level(), Level("loud")]
        evaluate(data, systems, metrics, out, report=report, **options)

    run(tmp_path / "whole", [Gain(), Gain("quiet", 0.1)])
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, [Gain(), Gain("quiet", 0.1)], Killed(after))
    assert not (out / "summary.json").exists()
    report = Killed(0)
    systems = [Gain(), Gain("quiet", 0.1)]
    run(out, systems, report)
    # One clip a batch: what was done is not done again, but for the warm-up.
    assert report.begun == [(6, after)]
    assert sum(len(system.batches) for system in systems) == 6 - after + 2
    assert texts_of(out) == texts_of(tmp_path / "whole")
    # A finished run does nothing.
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    del before[out / "work"]
    silent = [Gain(), Gain("quiet", 0.1)]
    run(out, silent)
    assert silent[0].batches == []
    assert before == {p: p.stat().st_mtime_ns for p in before}
    # But makes a file that is missing.
    (out / "summary.md").unlink()
    (out / "audio" / "quiet" / "0001-1.wav").unlink()
    run(out, silent)
    assert texts_of(out) == texts_of(tmp_path / "whole")
    assert silent[0].batches == [] and len(silent[1].batches) == 2
    assert (out / "audio" / "quiet" / "0001-1.wav").is_file()


def test_what_is_new_is_measured(data, tmp_path):
    out = tmp_path / "out"
    evaluate(data, [Gain()], [Level()], out)
    gain, quiet = Gain(), Gain("quiet", 0.1)
    evaluate(data, [quiet, gain], [Level()], out)
    assert gain.batches == [] and len(quiet.batches) == 2
    level, loud = Level(), Level("loud")
    evaluate(data, [quiet, gain], [loud, level], out)
    assert level.seen == [] and len(loud.seen) == 6
    evaluate(data, [Gain("quiet", 0.1), Gain()], [loud, level], tmp_path / "at")
    assert texts_of(out) == texts_of(tmp_path / "at")


def test_short_clips_are_left_out(data, tmp_path):
    bad_files(data)
    gain, out = Gain(), tmp_path / "out"
    options = {"min_duration": 0.8, "max_failures": 0.8}
    summary = evaluate(data, [gain], [], out, **options)
    assert [row["id"] for row in rows_of(out)] == ["1", "2"]
    assert summary.utterances == 2 and summary.unreadable == 5
    assert summary.duration == pytest.approx(1.8)
    assert "2 utterances" in (text := (out / "summary.md").read_text())
    assert ", each of 0.8 s or more;" in text
    # They count for no share of failures: 5 of 7, not of 8.
    with pytest.raises(DataError, match="5 of 7 utterances failed"):
        evaluate(data, [gain], [], out, min_duration=0.8, max_failures=0.5)
    clips = open_source(data)
    good = [item for item in clips if item.id in "012"]
    with pytest.raises(DataError, match="no utterance of 9 s and more"):
        evaluate(good, [gain], [], tmp_path / "none", min_duration=9.0)


def test_other_evaluations_are_refused(data, tmp_path):
    out = tmp_path / "out"
    evaluate(data, [Gain()], [Level()], out)
    whole = texts_of(out)

    def refused(match, source=data, systems=None, metrics=None, **options):
        with pytest.raises(DataError, match=match) as caught:
            evaluate(
                source,
                systems or [Gain()],
                [Level()] if metrics is None else metrics,
                out,
                **options,
            )
        assert str(out) in str(caught.value)

    refused("seed was 0, not 1", seed=1)
    refused("limit was None, not 1", limit=1)
    refused("min duration was 0.0, not 0.6", min_duration=0.6)
    refused("batch duration was 20.0, not 3.0", batch_duration=3.0)
    refused("task was", systems=[Converter()], voice_conversion=True)
    refused("models include gain; give it too", systems=[Gain("other")])
    refused("model gain was another", systems=[Gain(fingerprint="2")])
    refused("metrics include level", metrics=[])
    refused("metric level was another", metrics=[Level(fingerprint="2")])
    clip(data / "3.wav", 0.5)
    refused("data have 3 utterances, not 4")
    (data / "2.wav").unlink()
    refused(r"data have 2 \(.*2.wav\), not 3 \(.*3.wav\)")
    assert texts_of(out) == whole
    (out / "mine.txt").touch()
    evaluate(data, [Gain()], [Level()], out, overwrite=True)
    assert [row["id"] for row in rows_of(out)] == ["0", "1", "3"]
    assert (out / "mine.txt").exists()
    with pytest.raises(DataError, match="holds no evaluation"):
        evaluate(data, [Gain()], [], data, overwrite=True)
    assert (data / "1.wav").exists()


def test_changed_clips_fail(data, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, [Gain()], [], out, batch_duration=1.0, report=Killed(1))
    clip(data / "0.wav", 0.7)
    summary = evaluate(data, [Gain()], [], out)
    assert summary.unreadable == 1
    assert "another length" in failures_of(out)[0]["reason"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"limit": 0}, "limit"),
        ({"max_failures": 2.0}, "max_failures"),
        ({"min_duration": -1.0}, "min_duration"),
        ({"min_duration": math.nan}, "min_duration"),
        ({"batch_duration": 0.0}, "batch_duration"),
        ({"save_audio": -1}, "save_audio"),
        ({"workers": -1}, "workers"),
        ({"reference": "in"}, "voice_conversion"),
        ({"voice_conversion": True}, "none of these converts.* gain"),
        ({"systems": []}, "no system"),
        ({"systems": [Gain(), Gain()]}, "two systems are called gain"),
        ({"metrics": [Level(), Level()]}, "two metrics are called level"),
    ],
)
def test_wrong_arguments(tmp_path, options, match):
    given = {"systems": [Gain()], "metrics": [], **options}
    with pytest.raises(ValueError, match=match):
        evaluate(tmp_path, out=tmp_path / "out", **given)


def test_two_metrics_with_one_field(data, tmp_path):
    class Other(Level):
        def __call__(self, samples):
            return [{"level": 9.0} for _ in samples]

    with pytest.raises(ValueError, match="other gives the field 'level'"):
        evaluate(data, [Gain()], [Level(), Other("other")], tmp_path / "out")


@pytest.fixture
def speakers(tmp_path):
    """Three speakers, two clips each."""
    root = tmp_path / "speakers"
    for speaker in ("11", "22", "33"):
        for number in range(2):
            name = f"{speaker}-1-000{number}.wav"
            clip(root / speaker / "1" / name, 0.5 + 0.01 * int(speaker))
    return root


def test_voices_are_another_speakers(speakers, tmp_path):
    out, level = tmp_path / "out", Level()
    unaware = Level("unaware")
    unaware.converts = False
    summary = evaluate(
        speakers,
        [Gain(), Converter("converter")],
        [unaware, level],
        out,
        voice_conversion=True,
    )
    assert [it.name for it in summary.systems] == ["converter"]
    assert [it.key for it in summary.columns] == ["level"]
    rows = {row["id"]: row for row in rows_of(out)}
    assert len(rows) == 6 and "Voice conversion" in to_markdown(summary)
    for row in rows.values():
        assert row["target"] != row["speaker"] == row["id"][:2]
    assert len({row["target"] for row in rows.values()}) > 1
    for sample in level.seen:
        # Both clips of the target.
        seconds = 0.5 + 0.01 * int(rows[sample.id]["target"])
        assert len(sample.voice) == 2 * round(seconds * 16000)
    # A draw depends on nothing but the utterance and the seed.
    few = tmp_path / "few"
    options = {"voice_conversion": True, "limit": 2}
    evaluate(speakers, [Converter()], [], few, **options)
    for row in rows_of(few):
        assert row["target"] == rows[row["id"]]["target"]
    drawn = []
    for seed in range(1, 5):
        other = tmp_path / f"other{seed}"
        evaluate(speakers, [Converter()], [], other, seed=seed, **options)
        drawn.append([row["target"] for row in rows_of(other)])
    assert len({*map(tuple, drawn)}) > 1


def test_a_given_target_speaker(data, speakers, tmp_path):
    options = {"voice_conversion": True}
    with pytest.raises(DataError, match="no speaker.*--reference"):
        evaluate(data, [Converter()], [], tmp_path / "out", **options)
    target = clip(tmp_path / "jane" / "a.wav", 0.9).parent
    level, out = Level(), tmp_path / "out"
    evaluate(data, [Converter()], [level], out, reference=target, **options)
    assert {row["target"] for row in rows_of(out)} == {"jane"}
    assert {len(sample.voice) for sample in level.seen} == {14400}
    with pytest.raises(DataError, match="no other speaker"):
        evaluate(
            *(speakers / "11", [Converter()], [], tmp_path / "two"), **options
        )


def test_texts_of_a_corpus(tmp_path):
    """AN4's transcripts are in a folder above its audio."""
    folder = tmp_path / "an4" / "wav" / "an4test_clstk" / "fcaw"
    clip(folder / "an406-fcaw-b.wav", 0.7)
    clip(folder / "cen8-fcaw-b.wav", 0.7)
    etc = tmp_path / "an4" / "etc"
    etc.mkdir()
    (etc / "an4_test.transcription").write_text(
        "RUBOUT T G (an406-fcaw-b)\n<s> TWO SIX </s> (cen8-fcaw-b)\n\nodd\n"
    )
    source = open_source(folder.parent)
    assert source.kind == "an4"
    assert [(it.id, it.speaker, it.text) for it in sorted(source)] == [
        ("an406-fcaw-b", "fcaw", "RUBOUT T G"),
        ("cen8-fcaw-b", "fcaw", "TWO SIX"),
    ]
    evaluate(folder.parent, [Gain()], [Level()], tmp_path / "out")
    assert rows_of(tmp_path / "out")[0]["level_text"].startswith("RUBOUT")
    # One file that is named otherwise: an ordinary folder.
    clip(folder / "take.wav", 0.7)
    assert open_source(folder.parent).kind == "folder"


def test_words_of_a_corpus(tmp_path):
    """LibriSpeech's texts; rates are over all words."""
    folder = tmp_path / "corpus" / "1" / "2"
    for number, seconds in enumerate((1.0, 0.7)):
        clip(folder / f"1-2-000{number}.flac", seconds)
    (folder / "1-2.trans.txt").write_text("1-2-0000 ONE\n1-2-0001 TWO WORDS\n")
    # Original and output of each utterance, in turn.
    heard = iter(["One.", "Two words", "Won", "to words again"])
    metric = WordErrorRates(lambda sigs: [next(heard) for _ in sigs])
    out = tmp_path / "out"
    summary = evaluate(tmp_path / "corpus", [Gain()], [metric], out)
    values = {
        key: found.value for key, found in summary["gain"].figures.items()
    }
    assert values == pytest.approx(
        {"dwer": 100.0, "wer": 100.0, "wer_original": 0.0}
    )
    rows = rows_of(out)
    assert [row["text"] for row in rows] == ["ONE", "TWO WORDS"]
    assert [row["dwer_edits"] for row in rows] == ["1", "2"]
    assert "| **" not in (out / "summary.md").read_text()  # nothing to beat


def test_items_of_two_rates_and_parts(tmp_path):
    high = clip(tmp_path / "high.wav", 1.0, rate=48000)
    items = [
        Item("b", str(high), start=0.25, stop=1.0),
        Item("a/1", str(clip(tmp_path / "low.wav", 0.7, rate=8000))),
    ]
    level = Level()
    evaluate(items, [Gain()], [level], tmp_path / "out", save_audio=1)
    assert {s.id: len(s.original) for s in level.seen} == {
        "a/1": 11200,
        "b": 12000,
    }
    assert (tmp_path / "out" / "audio" / "gain" / "0000-a_1.wav").is_file()
    original = tmp_path / "out" / "audio" / "original" / "0000-a_1.wav"
    assert soundfile.info(original).samplerate == 8000
    with pytest.raises(DataError, match="have the same id 'b'"):
        evaluate([items[0], items[0]], [Gain()], [], tmp_path / "other")


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


def test_command_names_what_it_leaves_out(cli, speakers, tmp_path):
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


def test_a_damaged_part_is_named(data, tmp_path):
    out = tmp_path / "out"
    evaluate(data, [Gain()], [], out)
    (part,) = (out / "work").glob("gain-*/*.json")
    part.write_text("{")
    with pytest.raises(DataError, match=part.name):
        evaluate(data, [Gain()], [], out)
    part.unlink()
    evaluate(data, [Gain()], [], out)
    (out / "work" / "plan.json").write_text("{")
    with pytest.raises(DataError, match="--overwrite"):
        evaluate(data, [Gain()], [], out)
    evaluate(data, [Gain()], [], out, overwrite=True)
    shutil.rmtree(out)
    out.touch()
    with pytest.raises(DataError, match="is a file"):
        evaluate(data, [Gain()], [], out)


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
    codec, metric, script = re.findall(
        r"```python\n(.*?)```", text, re.DOTALL
    )
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
    # What is above 4 kHz is noise to it.
    assert mu_law.figures["stoi"].value > 0.98
    assert 5 < mu_law.figures["snr"].value < 40
    assert mini.figures["snr"].value < mu_law.figures["snr"].value
    assert len(rows_of(tmp_path / "results")) == 2
