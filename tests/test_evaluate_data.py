"""What an evaluation takes of a corpus: speakers, texts, parts of files."""

import pytest
import soundfile
from corpora import clip
from evaluation_fakes import (
    Converter,
    Gain,
    Level,
    make_data,
    make_speakers,
    rows_of,
    without_pictures,
)

from speechbrain_focalcodec.corpus.sources import Item, open_source
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.metrics.dwer import WordErrorRates
from speechbrain_focalcodec.metrics.harness import evaluate
from speechbrain_focalcodec.metrics.report import to_markdown


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "in")


@pytest.fixture
def speakers(tmp_path):
    return make_speakers(tmp_path / "speakers")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    without_pictures(monkeypatch)


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
