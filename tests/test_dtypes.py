"""Supported and refused types of weights and input."""

import pytest
import torch

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.acceleration import accelerate
from speechbrain_focalcodec.errors import AudioError
from speechbrain_focalcodec.modules.layouts import depthwise_conv
from speechbrain_focalcodec.streaming import (
    StreamingDecoder,
    StreamingEncoder,
    StreamingResynthesizer,
)
from speechbrain_focalcodec.voice import VoiceReference

MINI = "focalcodec_mini_50hz"
MODELS = ("offline_25hz", "offline_options", "causal_50hz", MINI)
# Fraction of equal tokens: random weights amplify rounding errors.
DTYPES = {torch.float16: 0.9, torch.bfloat16: 0.1, torch.float64: 0.99}


@pytest.fixture
def load(parity):
    def load(name):
        return FocalCodec.from_pretrained(
            name if name == MINI else parity / name
        )

    return load


def make_sig(*shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_every_stage_in_every_type(load, name, dtype):
    exact, codec = load(name), load(name).to(dtype)
    out = torch.promote_types(dtype, torch.float32)
    sig, lengths = make_sig(2, 16000), torch.tensor([16000, 9000])
    with torch.no_grad():
        want, _ = exact.encode(sig)
        for given in (sig, sig.double()):
            toks, _ = codec.encode(given)
            assert (toks == want).float().mean() >= DTYPES[dtype]
        rec, ref = codec.decode(want)[0], exact.decode(want)[0]
        assert rec.dtype == out
        limit = 0.5 if dtype == torch.bfloat16 else 0.1
        assert (rec - ref).norm() < limit * ref.norm()
        rec, _ = codec.resynthesize(sig, lengths)
        assert rec.dtype == out and rec.isfinite().all()
        reference = VoiceReference.from_sigs(codec, list(sig))
        assert codec.convert_voice(sig, reference).isfinite().all()
        toks, _ = codec.encode(sig[:1], window=0.5, context=0.1)
        assert codec.decode(toks, window=0.5)[0].dtype == out
    rec = codec.train().feats_to_sig(
        codec.codes_to_qfeats(
            codec.lats_to_codes(codec.feats_to_lats(codec.sig_to_feats(sig)))
        )
    )
    rec.sum().backward()
    assert all(
        p.grad.isfinite().all()
        for p in codec.decoder.parameters()
        if p.grad is not None
    )


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_streams_in_every_type(load, dtype):
    codec = load("causal_50hz").to(dtype)
    sig = make_sig(9000)
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    toks = torch.cat([*map(encoder.push, sig.split(1000)), encoder.flush()])
    assert len(toks) == codec.num_tokens(len(sig))
    parts = [*map(decoder.push, toks.split(3)), decoder.flush()]
    want = codec.decode(toks[None])[0][0]
    torch.testing.assert_close(torch.cat(parts), want, rtol=0, atol=0.02)
    first, second = (StreamingResynthesizer(codec) for _ in range(2))
    first.push(sig[:3000])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.push(sig[3000:]), second.push(sig[3000:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("taps", [14, 15, 64, 512])
def test_wide_windows_in_half_precision_return(dtype, taps):
    """oneDNN hangs in them; they run in float32 instead."""
    x, weight = torch.randn(1, taps + 9, 32), torch.randn(32, 1, taps)
    with torch.no_grad():
        got = depthwise_conv(x.to(dtype), weight.to(dtype), None)
        want = depthwise_conv(
            x.to(dtype).float(), weight.to(dtype).float(), None
        )
    torch.testing.assert_close(got, want.to(dtype))


@torch.no_grad()
def test_windows_and_filters_are_not_rounded(load):
    exact, codec = load(MINI), load(MINI)
    sig = make_sig(1, 9000)
    want = exact.sig_to_feats(sig)
    for convert in (codec.bfloat16, codec.half, codec.double, codec.float):
        convert()
        torch.testing.assert_close(codec.sig_to_feats(sig).float(), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@torch.no_grad()
def test_accelerated_models_change_their_type_too(load, precision, dtype):
    for name in (MINI, "causal_50hz"):
        codec = accelerate(load(name), precision).to(dtype)
        assert codec.resynthesize(make_sig(1, 6000)).isfinite().all()


SIG = make_sig(1, 16000)
NAN = torch.where(torch.arange(16000) == 7, torch.nan, SIG)


@pytest.mark.parametrize(
    ("method", "given", "error", "message"),
    [
        ("encode", (32767 * SIG).short(), ValueError, "sig.*int16.*full scale"),
        ("encode", SIG.to(torch.complex64), ValueError, "sig must be floats"),
        ("encode", NAN, AudioError, "sig has NaN"),
        ("encode", SIG / 0, AudioError, "sig has NaN or infinite"),
        ("resynthesize", NAN, AudioError, "sig has NaN"),
        ("resynthesize", SIG[0], ValueError, r"sig must be .*\[B, T\]"),
        ("resynthesize", [0.5], ValueError, "sig must be a tensor"),
        ("sig_to_feats", SIG.long(), ValueError, "sig must be floats"),
        ("sig_to_feats", NAN, AudioError, "sig has NaN"),
        ("feats_to_lats", torch.zeros(1, 5, 81), ValueError, "feats .*80 ch"),
        (
            "feats_to_lats",
            torch.full((1, 5, 80), torch.nan),
            ValueError,
            "feats",
        ),
        ("feats_to_sig", torch.zeros(1, 5, 13), ValueError, "feats .*80 chann"),
        ("lats_to_toks", torch.zeros(1, 5, 12), ValueError, "lats .*13 chann"),
        ("lats_to_toks", torch.full((1, 5, 13), torch.nan), ValueError, "lats"),
        ("lats_to_codes", torch.zeros(1, 13), ValueError, "lats must be"),
        (
            "codes_to_toks",
            torch.full((1, 5, 13), torch.nan),
            ValueError,
            "codes",
        ),
        ("codes_to_qfeats", torch.ones(1, 5, 80), ValueError, "codes .*13"),
        ("codes_to_qfeats", torch.ones(1, 5, 13).long(), ValueError, "codes"),
    ],
)
def test_wrong_input_is_named(method, given, error, message):
    codec = FocalCodec.from_pretrained(MINI)
    with torch.no_grad(), pytest.raises(error, match=message):
        getattr(codec, method)(given)


@torch.no_grad()
def test_pieces_from_read_are_checked():
    codec = FocalCodec.from_pretrained(MINI)
    with pytest.raises(AudioError, match=r"read\(0, 16000\).*NaN"):
        codec.encode_stream(lambda i, j: NAN[0, i:j], 16000)
    with pytest.raises(ValueError, match=r"read\(0, 16000\).*int16"):
        codec.encode_stream(lambda i, j: SIG[0, i:j].short(), 16000)


@torch.no_grad()
@pytest.mark.parametrize("name", [MINI, "offline_25hz", "causal_50hz"])
def test_values_beyond_the_lengths_do_not_matter(load, name):
    codec, sig = load(name), make_sig(2, 16000)
    lengths = torch.tensor([16000, 9000])
    want, _ = codec.encode(sig, lengths)
    sig[1, 9000:] = torch.nan
    assert torch.equal(codec.encode(sig, lengths)[0], want)
    with pytest.raises(AudioError, match="sig"):
        codec.encode(sig, lengths + torch.tensor([0, 1]))
