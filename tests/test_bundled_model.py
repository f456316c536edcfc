"""The model that comes with the package."""

from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.checkpoint import BUNDLED_MODELS, DEFAULT_MODEL
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.metrics.stoi import stoi

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def codec():
    return FocalCodec.from_pretrained(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def sig():
    return read_audio(DEMO_CLIP, 16000)[0]


def test_is_what_it_is_said_to_be(codec):
    assert codec.name == "focalcodec_mini_50hz"
    assert (codec.token_rate, codec.bitrate) == (50.0, 650.0)
    assert codec.codebook_size == 8192
    assert sum(p.numel() for p in codec.parameters()) <= 8_000_000
    weights = BUNDLED_MODELS / DEFAULT_MODEL / "model.safetensors"
    assert weights.stat().st_size <= 20_000_000


def test_is_the_model_of_its_yaml(codec):
    path = ROOT / "hparams" / "model" / f"{DEFAULT_MODEL}.yaml"
    with open(path, encoding="utf-8") as stream:
        built = load_hyperpyyaml(stream)["codec"]
    assert built.config == codec.config
    assert built.name == codec.name


@torch.no_grad()
def test_speech_stays_intelligible(codec, sig):
    """Noise, or a model that learnt nothing, has a STOI below 0.5."""
    rec_sig = codec.resynthesize(sig[None])[0]
    assert rec_sig.shape == sig.shape
    assert stoi(sig, rec_sig, 16000) > 0.75


@torch.no_grad()
def test_uses_its_codebook(codec, sig):
    toks, _ = codec.encode(sig[None])
    assert len(toks.unique()) > 0.8 * toks.numel()


@torch.no_grad()
def test_real_speech_in_a_batch_equals_alone(codec, sig):
    lengths = torch.tensor([len(sig), 40001, 12345, 319])
    batch = sig.expand(4, -1)
    toks, tok_lengths = codec.encode(batch, lengths)
    rec, rec_lengths = codec.decode(toks, tok_lengths)
    for i, length in enumerate(lengths):
        alone, _ = codec.encode(batch[i : i + 1, :length])
        assert torch.equal(toks[i : i + 1, : tok_lengths[i]], alone)
        alone, _ = codec.decode(alone)
        torch.testing.assert_close(
            rec[i : i + 1, : rec_lengths[i]], alone, rtol=0, atol=2e-5
        )


def test_both_interfaces_give_the_same(tmp_path, sig):
    ours = PretrainedFocalCodec.from_pretrained(DEFAULT_MODEL)
    theirs = PretrainedFocalCodec.from_hparams(
        source=str(BUNDLED_MODELS / DEFAULT_MODEL), savedir=str(tmp_path)
    )
    tokens, _ = ours.encode_batch(sig[None])
    assert torch.equal(tokens, theirs.encode_batch(sig[None])[0])
    assert ours.fingerprint == theirs.fingerprint
