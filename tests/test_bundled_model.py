"""The models that come with the package."""

from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.metrics.stoi import stoi
from speechbrain_focalcodec.model_files import (
    BUNDLED_MODELS,
    DEFAULT_CAUSAL_MODEL,
    DEFAULT_MODEL,
    bundled_models,
)
from speechbrain_focalcodec.streaming import (
    StreamingEncoder,
    StreamingResynthesizer,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", params=[DEFAULT_MODEL, DEFAULT_CAUSAL_MODEL])
def codec(request):
    return FocalCodec.from_pretrained(request.param)


@pytest.fixture(scope="module")
def sig():
    return read_audio(DEMO_CLIP, 16000)[0]


def test_all_are_tested():
    assert bundled_models() == [DEFAULT_MODEL, DEFAULT_CAUSAL_MODEL]


def test_is_what_it_is_said_to_be(codec):
    assert codec.causal == codec.name.endswith("_causal")
    assert codec.latency == (80.0 if codec.causal else None)
    assert (codec.token_rate, codec.bitrate) == (50.0, 650.0)
    assert codec.codebook_size == 8192
    assert sum(p.numel() for p in codec.parameters()) <= 8_000_000
    weights = BUNDLED_MODELS / codec.name / "model.safetensors"
    assert weights.stat().st_size <= 20_000_000


def test_is_the_model_of_its_yaml(codec):
    path = ROOT / "hparams" / "model" / f"{codec.name}.yaml"
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


def test_both_interfaces_give_the_same(codec, tmp_path, sig):
    ours = PretrainedFocalCodec.from_pretrained(codec.name)
    theirs = PretrainedFocalCodec.from_hparams(
        source=str(BUNDLED_MODELS / codec.name), savedir=str(tmp_path)
    )
    tokens, _ = ours.encode_batch(sig[None])
    assert torch.equal(tokens, theirs.encode_batch(sig[None])[0])
    assert ours.fingerprint == theirs.fingerprint


@pytest.mark.parametrize("piece", [701, 16000])
def test_streams_real_speech(piece, sig):
    codec = FocalCodec.from_pretrained(DEFAULT_CAUSAL_MODEL)
    with torch.no_grad():
        want, _ = codec.encode(sig[None])
        rec = codec.resynthesize(sig[None])[0]
    encoder, both = StreamingEncoder(codec), StreamingResynthesizer(codec)
    toks = [encoder.push(part) for part in sig.split(piece)]
    assert torch.equal(torch.cat([*toks, encoder.flush()]), want[0])
    got = [both.push(part) for part in sig.split(piece)]
    torch.testing.assert_close(
        torch.cat([*got, both.flush()]), rec, rtol=0, atol=1e-4
    )
