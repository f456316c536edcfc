"""Word error rates as a metric, with openai-whisper's and the hub's models."""

import json
import sys

import pytest
import torch
from metric_samples import NOTHING, SPEECH, all_fields, same
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.metrics.base import Sample
from speechbrain_focalcodec.metrics.dwer import WordErrorRates
from speechbrain_focalcodec.metrics.wer import WhisperTranscriber
from speechbrain_focalcodec.metrics.whisper_import import load_hub_whisper

ORIGINAL, OUTPUT = torch.zeros(1), torch.zeros(2)


def hearing(**heard):
    """A metric that recognises these texts in ORIGINAL and OUTPUT."""
    return WordErrorRates(
        lambda sigs: [
            heard["original" if len(x) == 1 else "output"] for x in sigs
        ]
    )


def test_edits_and_words_are_counted():
    metric = hearing(original="The cat sat.", output="a cat sat down")
    known, unknown = metric(
        [
            Sample("a", ORIGINAL, OUTPUT, "THE CAT SAT DOWN"),
            Sample("b", ORIGINAL, OUTPUT),
        ]
    )
    assert known == {
        "transcript_original": "The cat sat.",
        "transcript_output": "a cat sat down",
        "dwer_edits": 2,
        "dwer_words": 3,
        "wer_edits": 1,
        "wer_words": 4,
        "wer_original_edits": 1,
    }
    assert (unknown["dwer_edits"], unknown["dwer_words"]) == (2, 3)
    assert unknown["wer_edits"] is unknown["wer_words"] is None
    assert unknown["wer_original_edits"] is None
    # The rows have all fields of the columns.
    assert set(all_fields(metric)) == {
        name for name in known if not name.startswith("transcript")
    }
    assert metric.converts


def test_words_recognised_in_silence_are_errors():
    metric = hearing(original="", output="thank you")
    [row] = metric([Sample("a", ORIGINAL, OUTPUT, "[laughs]")])
    assert (row["dwer_edits"], row["dwer_words"]) == (2, 0)
    assert row["wer_words"] is None  # a text without words is none


@pytest.mark.parametrize("sig", NOTHING.values(), ids=NOTHING)
def test_empty_and_broken_signals_have_no_figure(sig):
    metric = hearing(original="a", output="a")
    for sample in (Sample("a", ORIGINAL, sig), Sample("b", sig, OUTPUT)):
        [row] = metric([sample])
        assert {row[name] for name in all_fields(metric)} == {None}


def test_an_original_is_transcribed_once():
    heard = []

    def transcribe(sigs):
        heard.extend(len(sig) for sig in sigs)
        return ["word"] * len(sigs)

    metric = WordErrorRates(transcribe)
    samples = [Sample("a", ORIGINAL, OUTPUT)]
    assert metric(samples) == metric(samples)
    assert heard == [1, 2, 2]


def test_two_recognisers_have_separate_columns():
    names = [
        {column.key for column in metric.columns} | set(all_fields(metric))
        for metric in (
            WordErrorRates(None),
            WordErrorRates(None, "whisper-small", "Whisper-small"),
        )
    ]
    assert "whisper_small_dwer" in names[1]
    assert not names[0] & names[1]


# Whisper from the hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny multilingual Whisper as `transformers` saves it."""
    torch.manual_seed(0)
    config = WhisperConfig(
        **{"vocab_size": 51865, "d_model": 16, "max_target_positions": 16},
        **{"encoder_layers": 2, "encoder_attention_heads": 2},
        **{"decoder_layers": 1, "decoder_attention_heads": 4},
        **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
        init_std=0.5,
    )
    path = tmp_path_factory.mktemp("whisper")
    WhisperForConditionalGeneration(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whisper(folder):
    return load_hub_whisper(folder)


def test_the_imported_whisper_computes_the_same(folder, whisper):
    theirs = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    mel = torch.randn(2, 80, 3000)
    toks = torch.tensor([[50258, 50259, 50359, 50363]] * 2)
    with torch.no_grad():
        expected = theirs(mel, decoder_input_ids=toks).logits
        got = whisper(mel, toks)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert whisper.is_multilingual


def test_a_batch_is_transcribed_as_one_by_one(whisper):
    transcriber = WhisperTranscriber.of_model(whisper)
    sigs = [SPEECH, SPEECH[:20000], SPEECH.repeat(11), SPEECH[:16000].flip(0)]
    texts = transcriber.transcribe_batch(sigs)
    assert texts == [transcriber(sig, 16000) for sig in sigs]
    assert len(set(texts)) > 1


def test_the_metric_takes_a_local_folder(folder):
    metric = WordErrorRates.of_hub(folder)
    [row] = metric([same()])
    assert metric.name == "whisper-small"
    assert row["whisper_small_dwer_edits"] == 0
    assert row["whisper_small_transcript_original"]


def test_the_weights_of_another_kind_are_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"decoder_attention_heads": 3}, "3 heads for a width of 16"),
        ({"encoder_attention_heads": None}, "no Whisper in the layout"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_hub_whisper(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    del weights["model.encoder.layers.1.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks.1.mlp.0.weight"):
        load_hub_whisper(tmp_path)


def test_whisper_names_its_extra(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "whisper", None)
    monkeypatch.delitem(sys.modules, "whisper.model")
    with pytest.raises(ImportError, match=r"\[whisper\]"):
        load_hub_whisper(folder)
