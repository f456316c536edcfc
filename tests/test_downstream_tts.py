"""Synthesis models made from data: pieces and voices."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from make_tokens import make_tokens

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.data.manifest import read_manifest, write_manifest
from speechbrain_focalcodec.downstream import speakers
from speechbrain_focalcodec.downstream.data import split_file
from speechbrain_focalcodec.downstream.front_ends import (
    TokenFrontEnd,
    make_front_end,
)
from speechbrain_focalcodec.downstream.language_model import TokenLanguageModel
from speechbrain_focalcodec.downstream.tts import TTSBrain, embed_voices
from speechbrain_focalcodec.errors import ConfigError, DataError

SPLITS = {"train": "abc", "valid": "de", "test": "de"}


class Embedder:
    """Replaces Resemblyzer: four values of a waveform at 16 kHz."""

    name = "figures"

    def __call__(self, sig):
        return torch.stack([sig.mean(), sig.std(), sig.max(), sig.min()])


@pytest.fixture
def embedder(monkeypatch):
    monkeypatch.setattr(speakers, "VoiceEmbedder", Embedder)


@pytest.fixture(scope="module")
def codec(parity):
    return FocalCodec.from_pretrained(parity / "offline_50hz")


@pytest.fixture
def hparams(tmp_path):
    """Three training utterances; validation and test share two."""
    for split, names in SPLITS.items():
        entries = {}
        for name in names:
            sig = np.full(8000, 0.01 * (1 + ord(name) - ord("a")))
            sig[::2] = 0
            soundfile.write(tmp_path / f"{name}.wav", sig, 16000)
            entries[name] = {
                "wav": f"{{data_root}}/{name}.wav",
                "num_samples": 8000,
                "sample_rate": 16000,
                "duration": 0.5,
                "spk_id": "Ann" if name in "abd" else "Bob",
                "text": f"go {name}",
            }
        write_manifest(tmp_path / "save" / split_file(split), entries)
    return {
        "front_end": TokenFrontEnd(codebook_size=64, token_rate=25.0),
        "language_model": functools.partial(
            TokenLanguageModel, dim=16, num_layers=1, ffn_dim=32
        ),
        "data_folder": tmp_path,
        "save_folder": tmp_path / "save",
        "tokenizer_kind": "char",
        "tokenizer_size": None,
        "voices": True,
        "voices_file": tmp_path / "save" / "voices.safetensors",
        "tokens": {},
        "seed": 1,
    }


def test_a_model_with_voices(hparams, embedder):
    model = TTSBrain.build(hparams)["model"]
    assert model.num_pieces == hparams["tokenizer"].size
    # GO ABC, the mark of words, the unknown; nothing of D and E.
    assert hparams["tokenizer"].size == 7
    assert (model.codebook_size, model.speaker_dim) == (64, 4)
    voices = hparams["speakers"]
    assert sorted(voices.ids) == list("abcde")
    assert voices.reference("c") == "e"
    assert voices.reference("a") in "bd"
    assert hparams["voices_file"].is_file()


def test_a_model_without_voices(hparams):
    hparams["voices"] = False
    model = TTSBrain.build(hparams)["model"]
    assert model.speaker_dim is None and hparams["speakers"] is None
    assert not hparams["voices_file"].exists()


@pytest.mark.parametrize("kind", ["log_mel", "features"])
def test_refuses_what_makes_no_tokens(hparams, codec, kind):
    hparams["front_end"] = make_front_end(kind, codec)
    name = type(hparams["front_end"]).__name__
    with pytest.raises(ConfigError, match=f"not {name}: set input: tokens"):
        TTSBrain.build(hparams)
    with pytest.raises(ConfigError, match=f"not {kind}: set input: tokens"):
        TTSBrain.build({**hparams, "input": kind})


def test_one_id_for_two_voices_is_refused(hparams, embedder):
    path = hparams["save_folder"] / split_file("test")
    entries = read_manifest(path)
    entries["d"]["spk_id"] = "Cleo"
    write_manifest(path, entries)
    with pytest.raises(DataError, match="several utterances .* d"):
        embed_voices(hparams)


def test_voices_of_token_datasets(
    hparams, embedder, codec, tmp_path, monkeypatch
):
    folder = make_tokens(
        tmp_path / "tokens",
        (2, 3),
        codebook_size=codec.codebook_size,
        fingerprint=codec.fingerprint,
    )
    hparams |= {"codec": codec, "tokens": {"valid": folder, "test": folder}}
    voices = embed_voices(hparams)
    # Those of the training data come from its manifest.
    assert voices.ids[:3] == list("abc") and len(voices) == 8
    assert voices.reference("utt-0000") == "utt-0003"
    # What is kept is not decoded again.
    monkeypatch.setattr(codec, "decode", None)
    hparams["tokens"] = {"valid": folder}
    again = embed_voices(hparams)
    assert again(["utt-0000"]).equal(voices(["utt-0000"]))


def test_the_best_is_that_of_the_lowest_loss_or_the_last():
    brain = TTSBrain.__new__(TTSBrain)
    brain.hparams = SimpleNamespace()
    assert brain.checkpoint_rank(7.0, 2) < brain.checkpoint_rank(7.5, 3)
    brain.hparams.best_by = "last"
    assert brain.checkpoint_rank(7.0, 2) > brain.checkpoint_rank(7.5, 3)
    brain.hparams.best_by = "first"
    with pytest.raises(ConfigError, match="neither loss nor last"):
        brain.checkpoint_rank(7.0, 2)
