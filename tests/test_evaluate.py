"""Evaluating codecs: what is measured, what is kept, what is refused."""

import json
import math
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from corpora import bad_files, clip
from evaluation_fakes import (
    Converter,
    Copy,
    Gain,
    Level,
    failures_of,
    make_data,
    rows_of,
    texts_of,
    without_pictures,
)

from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.corpus.sources import open_source
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.report import Report
from speechbrain_focalcodec.metrics import finishing, plots
from speechbrain_focalcodec.metrics.harness import evaluate
from speechbrain_focalcodec.metrics.summary import (
    Figure,
)
from speechbrain_focalcodec.metrics.systems.base import Output


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "in")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    without_pictures(monkeypatch)


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


def test_corrupt_clips_are_listed(data, tmp_path):
    bad = bad_files(data)
    out = tmp_path / "out"
    with pytest.raises(DataError, match="4 of 8 utterances .*max-failures"):
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
    refused("data had other utterances")
    (data / "2.wav").unlink()
    refused("data had other utterances")
    assert texts_of(out) == whole
    (out / "mine.txt").touch()
    evaluate(data, [Gain()], [Level()], out, overwrite=True)
    assert [row["id"] for row in rows_of(out)] == ["0", "1", "3"]
    assert (out / "mine.txt").exists()
    with pytest.raises(DataError, match="holds no evaluation"):
        evaluate(data, [Gain()], [], data, overwrite=True)
    assert (data / "1.wav").exists()


def test_what_a_kill_cuts_short_is_dropped(data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    evaluate(data, [Gain()], [Level()], whole, batch_duration=1.0)
    evaluate(data, [Gain()], [Level()], out, batch_duration=1.0)
    [path] = (out / "work").glob("gain-*.jsonl")
    lines = path.read_bytes()
    assert [json.loads(line)["id"] for line in lines.splitlines()] == [*"210"]
    for length in range(len(lines)):
        if length % 40 and lines[length - 1 : length] != b"\n":
            continue
        path.write_bytes(lines[:length])
        gain = Gain()
        evaluate(data, [gain], [Level()], out)
        # One clip a batch, and one more for the warm-up.
        left = 3 - lines[:length].count(b"\n")
        assert len(gain.batches) == left + 1
        assert path.read_bytes() == lines
        assert texts_of(out) == texts_of(whole)


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


def test_damaged_results_are_named(data, tmp_path):
    out = tmp_path / "out"
    evaluate(data, [Gain()], [], out)
    [path] = (out / "work").glob("gain-*.jsonl")
    path.write_text("{\n" + path.read_text())
    with pytest.raises(DataError, match=path.name):
        evaluate(data, [Gain()], [], out)
    path.unlink()
    evaluate(data, [Gain()], [], out)
    (out / "work" / "settings.json").write_text("{")
    with pytest.raises(DataError, match="--overwrite"):
        evaluate(data, [Gain()], [], out)
    evaluate(data, [Gain()], [], out, overwrite=True)
    shutil.rmtree(out)
    out.touch()
    with pytest.raises(DataError, match="is a file"):
        evaluate(data, [Gain()], [], out)
