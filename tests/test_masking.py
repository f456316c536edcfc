"""The output of an utterance does not depend on its padded batch."""

import pytest
import torch
from conftest import PARITY
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.modules.focal import FocalModulation
from speechbrain_focalcodec.modules.masking import (
    check_lengths,
    zero_beyond,
)

TOLERANCE = 1e-5
# Latents are no output; random weights amplify rounding errors.
LATENT_TOLERANCE = 1e-4

# Offline and causal, each down-scaling, both decoders, all options.
MODELS = [
    "offline_50hz",
    "offline_25hz",
    "offline_12_5hz",
    "offline_options",
    "causal_50hz",
    "causal_50hz_lookahead0",
]
NEURAL = {name: FocalCodec.from_pretrained(PARITY / name) for name in MODELS}
HOP = 320


def log_mel_codec(factors: tuple[int, int, int], decoder: str) -> FocalCodec:
    """A codec with the log-mel encoder, offline or with a causal decoder."""
    torch.manual_seed(1)
    config = {
        "encoder_name": "LogMel",
        "encoder_config": {"n_mels": 20},
        "compressor_config": {
            "input_dim": 20,
            "output_dim": 6,
            "hidden_dims": [16, 16, 16],
            "downscale_factors": factors,
        },
        "quantizer_config": {"codebook_size": 64},
        "decompressor_config": {
            "input_dim": 6,
            "output_dim": 20,
            "hidden_dims": [16, 16, 16],
            "upscale_factors": factors[::-1],
        },
        "decoder_name": "Vocos",
        "decoder_config": {
            "input_dim": 20,
            "num_layers": 2,
            "dim": 16,
            "ffn_dim": 32,
            "causal": decoder == "causal",
        },
    }
    return FocalCodec.from_config(
        config, name=f"log_mel_{factors}_{decoder}"
    ).eval()


CODECS = {
    **NEURAL,
    "log_mel": log_mel_codec((1, 1, 1), "offline"),
    "log_mel_down_6": log_mel_codec((3, 1, 2), "offline"),
    "log_mel_causal_decoder": log_mel_codec((2, 1, 1), "causal"),
}

lengths_strategy = st.lists(
    st.integers(min_value=1, max_value=9000), min_size=2, max_size=4
)


def make_batch(lengths: list[int], noise: float) -> torch.Tensor:
    """Waveforms whose padding is loud, so that looking at it shows."""
    generator = torch.Generator().manual_seed(sum(lengths))
    sig = torch.randn(len(lengths), max(lengths) + 400, generator=generator)
    steps = torch.arange(sig.shape[1])
    inside = steps < torch.tensor(lengths)[:, None]
    return torch.where(inside, 0.1 * sig, noise * sig)


def assert_close(
    got: torch.Tensor, expected: torch.Tensor, atol: float = TOLERANCE
) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=20)
@given(lengths=lengths_strategy, noise=st.sampled_from([0.0, 0.1, 1.0]))
@example(lengths=[1, 5000], noise=1.0)
@example(lengths=[399, 400, 401], noise=1.0)
@example(lengths=[320, 640, 641, 9000], noise=1.0)
def test_batch_equals_alone(name, lengths, noise):
    codec = CODECS[name]
    batch = make_batch(lengths, noise)
    absolute = torch.tensor(lengths)
    feats, frames = codec.sig_to_feats(batch, absolute)
    lats, tokens = codec.feats_to_lats(feats, frames)
    toks, tok_lengths = codec.encode(batch, absolute)
    codes, _ = codec.toks_to_codes(toks, tok_lengths)
    qfeats, qframes = codec.codes_to_qfeats(codes, tok_lengths)
    rec, rec_lengths = codec.decode(toks, tok_lengths)
    whole, whole_lengths = codec.resynthesize(batch, absolute)
    assert torch.equal(tokens, tok_lengths)
    for i, length in enumerate(lengths):
        sig = batch[i : i + 1, :length]
        alone = codec.sig_to_feats(sig)
        assert frames[i] == alone.shape[1]
        assert_close(feats[i : i + 1, : frames[i]], alone)
        alone = codec.feats_to_lats(alone)
        assert tokens[i] == alone.shape[1]
        assert_close(lats[i : i + 1, : tokens[i]], alone, LATENT_TOLERANCE)
        alone, _ = codec.encode(sig)
        assert torch.equal(toks[i : i + 1, : tok_lengths[i]], alone)
        alone_qfeats = codec.codes_to_qfeats(codec.toks_to_codes(alone))
        assert qframes[i] == alone_qfeats.shape[1]
        assert_close(qfeats[i : i + 1, : qframes[i]], alone_qfeats)
        alone_rec, _ = codec.decode(alone)
        assert rec_lengths[i] == alone_rec.shape[1]
        assert_close(rec[i : i + 1, : rec_lengths[i]], alone_rec)
        alone_whole = codec.resynthesize(sig)
        assert whole_lengths[i] == alone_whole.shape[1]
        assert_close(whole[i : i + 1, : whole_lengths[i]], alone_whole)
    # The padding is silent.
    for x, n in ((feats, frames), (lats, tokens), (toks, tok_lengths)):
        assert torch.equal(x, zero_beyond(x, n))
    for x, n in ((qfeats, qframes), (rec, rec_lengths)):
        assert torch.equal(x, zero_beyond(x, n))


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=10)
@given(length=st.integers(min_value=1, max_value=6000))
def test_resynthesis_keeps_the_length(name, length):
    codec = CODECS[name]
    out = codec.resynthesize(torch.randn(1, length))
    rate = codec.sample_rate_output / codec.sample_rate_input
    assert out.shape == (1, -int(-length * rate // 1))
    assert out.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
def test_neighbours_matter_without_lengths(name):
    """The test above can fail: unmasked, padding changes the waveform."""
    codec = CODECS[name]
    batch = make_batch([3000, 9000], noise=1.0)
    padded = codec.feats_to_sig(codec.sig_to_feats(batch))[:1]
    alone = codec.feats_to_sig(codec.sig_to_feats(batch[:1, :3000]))
    assert (
        not torch.allclose(padded[:, : alone.shape[1]], alone, atol=TOLERANCE)
        or codec.causal
    )


@pytest.mark.parametrize(
    "lengths,message",
    [
        (torch.tensor([0.5, 1.0]), "integer tensor of absolute lengths"),
        (torch.tensor([1]), r"shape \[2\]"),
        (torch.tensor([0, 3]), r"1\.\.5.*0\.\.3"),
        (torch.tensor([1, 6]), r"1\.\.5.*1\.\.6"),
        ([1, 2], "integer tensor"),
    ],
)
def test_bad_lengths_are_named(lengths, message):
    with pytest.raises(ValueError, match=f"(?s)lens.*{message}"):
        check_lengths(lengths, torch.zeros(2, 5), "lens")


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda c: c.encode(torch.zeros(16000)), r"sig.*\[B, T\]"),
        (lambda c: c.encode(torch.zeros(1, 0)), "empty"),
        (lambda c: c.decode(torch.zeros(1, 0, dtype=torch.long)), "empty"),
        (lambda c: c.decode(torch.full((1, 3), 32)), r"0\.\.31.*another"),
        (lambda c: c.decode(torch.full((1, 3), -1)), r"got -1\.\.-1"),
        (lambda c: c.decode(torch.zeros(1, 3)), "integers"),
        (lambda c: c.feats_to_sig(torch.zeros(3, 32)), r"\[B, T, C\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(CODECS["offline_50hz"])


def test_tokens_beyond_the_length_are_ignored():
    codec = CODECS["offline_50hz"]
    toks = torch.tensor([[1, 2, 999]])
    codec.decode(toks, torch.tensor([2]))


def test_facts():
    codec = CODECS["causal_50hz"]
    assert (codec.sample_rate_input, codec.sample_rate_output) == (
        16000,
        24000,
    )
    assert (codec.token_rate, codec.bitrate) == (50.0, 300.0)
    assert (codec.codebook_size, codec.causal) == (64, True)
    assert codec.latency == 80.0
    codec = CODECS["offline_12_5hz"]
    assert (codec.token_rate, codec.latency) == (12.5, None)
    assert not CODECS["log_mel_causal_decoder"].causal


def test_half_precision_mean_does_not_overflow():
    """A sum over 3000 half floats overflows; padding must not either."""
    modulation = FocalModulation(4).half()
    context = torch.full((1, 3000, 4), 30.0, dtype=torch.float16)
    mean = modulation._mean(context, torch.tensor([3000]))
    assert mean.dtype == torch.float16
    assert torch.equal(mean, torch.full((1, 1, 4), 30.0).half())


def test_offline_models_refuse_a_state():
    from speechbrain_focalcodec.modules.causal import StreamState

    with pytest.raises(ValueError, match="offline model.*cannot stream"):
        CODECS["offline_50hz"].sig_to_feats(
            torch.zeros(1, 4000), state=StreamState()
        )
