"""STOI, word error rates and intervals, as functions."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.errors import AudioError, CheckpointError
from speechbrain_focalcodec.metrics.bootstrap import bootstrap_ratio
from speechbrain_focalcodec.metrics.stoi import stoi
from speechbrain_focalcodec.metrics.wer import (
    WhisperTranscriber,
    WordErrors,
    count_word_errors,
)
from speechbrain_focalcodec.utils.extras import import_extra


@pytest.fixture(scope="module")
def speech():
    return read_audio(DEMO_CLIP)[0]


# Extras


def test_missing_extra_says_what_to_install(monkeypatch, speech):
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(
        ImportError, match=r"pip install 'speechbrain_focalcodec\[metrics\]'"
    ):
        stoi(speech, speech, 16000)


def test_fault_inside_an_extra_is_not_hidden(monkeypatch, tmp_path):
    (tmp_path / "broken_extra.py").write_text("import not_there_either\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_either") as info:
        import_extra("broken_extra", "metrics")
    assert "pip install" not in str(info.value)


# STOI


def test_stoi_falls_with_noise(speech):
    noise = torch.randn(len(speech), generator=torch.manual_seed(0))
    noise *= speech.square().mean().sqrt()
    values = [
        stoi(speech, speech + level * noise, 16000) for level in (0, 0.3, 1, 3)
    ]
    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sig: sig[:-1], "same shape"),
        (lambda sig: sig[None], "same shape"),
        (lambda sig: torch.full_like(sig, float("nan")), "not finite"),
    ],
)
def test_stoi_refuses_estimates(speech, change, message):
    with pytest.raises(AudioError, match=message):
        stoi(speech, change(speech), 16000)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.zeros(16000), "silent"),
        (torch.rand(3000) - 0.5, "too little speech"),
    ],
)
def test_stoi_refuses_references_without_speech(reference, message):
    with pytest.raises(AudioError, match=message):
        stoi(reference, torch.rand(len(reference)) - 0.5, 16000)


# Word error rate


def test_word_errors_count_each_kind():
    # One substitution, one deletion; one insertion.
    assert count_word_errors("a cat sat down", "a bat sat") == WordErrors(2, 4)
    assert count_word_errors("cat", "cat again") == WordErrors(1, 1)
    assert count_word_errors("", "two words") == WordErrors(2, 0)
    assert count_word_errors("two words", "") == WordErrors(2, 2)


def test_word_errors_ignore_spelling_conventions():
    assert count_word_errors(
        "THE COLOUR OF MISTER GREY'S TWENTY ONE HATS",
        "The color of Mr. Gray's 21 hats.",
    ) == WordErrors(0, 8)


@pytest.fixture(scope="module")
def whisper_checkpoint(tmp_path_factory):
    """A tiny Whisper that always says "hello", eight times in a window."""
    from whisper.model import ModelDimensions, Whisper
    from whisper.tokenizer import get_tokenizer

    torch.manual_seed(0)
    dims = ModelDimensions(
        n_mels=80,
        n_audio_ctx=1500,
        n_audio_state=8,
        n_audio_head=1,
        n_audio_layer=1,
        n_vocab=51864,
        n_text_ctx=16,
        n_text_state=8,
        n_text_head=1,
        n_text_layer=1,
    )
    decoder = (model := Whisper(dims)).decoder
    hello = get_tokenizer(multilingual=False).encode(" hello")[0]
    torch.nn.init.zeros_(decoder.positional_embedding)  # left uninitialised
    torch.nn.init.zeros_(decoder.ln.weight)
    torch.nn.init.ones_(decoder.ln.bias)
    torch.nn.init.constant_(decoder.token_embedding.weight[hello], 100.0)
    path = tmp_path_factory.mktemp("whisper") / "hello.en.pt"
    torch.save(
        {"dims": vars(dims), "model_state_dict": model.state_dict()}, path
    )
    return path


def test_transcriber_reads_a_checkpoint(whisper_checkpoint, speech):
    transcriber = WhisperTranscriber(whisper_checkpoint)
    assert transcriber(speech, 16000) == " ".join(8 * ["hello"])
    # A second window, beyond 30 s.
    assert transcriber(speech.repeat(6), 16000) == " ".join(16 * ["hello"])


def test_transcriber_resamples_and_is_greedy(whisper_checkpoint, monkeypatch):
    transcriber = WhisperTranscriber(whisper_checkpoint)
    seen = {}

    def transcribe(sig, **options):
        seen.update(options, sig=sig)
        return {"text": " Hello.  "}

    monkeypatch.setattr(transcriber.model, "transcribe", transcribe)
    assert transcriber(torch.zeros(24000), 24000) == "Hello."
    assert seen["sig"].shape == (16000,)
    assert (seen["temperature"], seen["language"]) == (0.0, "en")


def test_transcriber_never_downloads(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="tiny.en; give the path"):
        WhisperTranscriber("tiny.en")


def test_transcriber_executes_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "marker",)

    path = tmp_path / "attack.pt"
    torch.save({"dims": Attack()}, path)
    plain = pickle.dumps(Attack(), protocol=2)
    for data in (path.read_bytes(), plain, b"junk"):
        path.write_bytes(data)
        with pytest.raises(
            CheckpointError, match="attack.pt is not a checkpoint"
        ):
            WhisperTranscriber(path)
    assert not (tmp_path / "marker").exists()


# Bootstrap


def test_bootstrap_fits_the_normal_interval():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    estimate = bootstrap_ratio(values)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_ratio(values) == estimate
    assert bootstrap_ratio(values, seed=1) != estimate


def test_bootstrap_keeps_an_utterance_together():
    words = np.arange(1, 50)
    estimate = bootstrap_ratio(0.3 * words, words)
    assert estimate.low == pytest.approx(0.3)
    assert estimate.high == pytest.approx(0.3)


def test_bootstrap_leaves_out_draws_without_words():
    estimate = bootstrap_ratio([1, 0], [2, 0])
    assert (estimate.low, estimate.value, estimate.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("numerators", "denominators"), [([], None), ([1], [1, 2]), ([1], [0])]
)
def test_bootstrap_refuses(numerators, denominators):
    with pytest.raises(ValueError, match="denominators"):
        bootstrap_ratio(numerators, denominators)
