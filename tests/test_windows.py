"""Any length in bounded memory: windows against a single pass."""

import copy

import pytest
import torch
from conftest import PARITY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_masking import CODECS as MASKING_CODECS
from test_streaming import CODECS as STREAMING_CODECS
from test_streaming import make_codec

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import TokenError
from speechbrain_focalcodec.modules.focal import FocalModulation
from speechbrain_focalcodec.windows import (
    Sizes,
    decode_sizes,
    encode_sizes,
    plan_windows,
)

OFFLINE = {
    **{name: c for name, c in MASKING_CODECS.items() if not c.causal},
    "v001_12_5hz": FocalCodec.from_pretrained(PARITY / "v001_12_5hz"),
    "v001_50hz": FocalCodec.from_pretrained(PARITY / "v001_50hz"),
    "mini": FocalCodec.from_pretrained("focalcodec_mini_50hz"),
}
CAUSAL = {
    **{name: c for name, c in MASKING_CODECS.items() if c.causal},
    **{name: make_codec(name) for name in STREAMING_CODECS},
}
# Windows as short as these models allow, or the next to them.
WINDOW, CONTEXT = 1.3, 0.3


def mixed_codec() -> FocalCodec:
    """Causal encoder and decompressor, with chunks, in an offline codec."""
    config = make_codec("down_scaled").config.model_dump()
    config["compressor_config"]["causal"] = False
    config["decoder_name"] = "Vocos"
    config["decoder_config"] |= {"causal": False, "n_fft": 1000}
    config["encoder_config"]["lookahead_size"] = 4
    config["decompressor_config"]["lookahead_size"] = 5
    return FocalCodec(config, name="mixed").eval()


OFFLINE["mixed"] = mixed_codec()


def speech(codec: FocalCodec, lengths: list[int]) -> torch.Tensor:
    """Loud noise within and beyond the lengths."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return 0.3 * torch.randn(len(lengths), max(lengths), generator=generator)


def random_toks(codec: FocalCodec, lengths: list[int]) -> torch.Tensor:
    shape = (len(lengths), max(lengths))
    return torch.randint(codec.codebook_size, shape)


def no_mean(self, x, *args):
    return torch.zeros_like(x.mean(-1, keepdim=True))


def three_lengths(codec: FocalCodec, seconds: float) -> list[int]:
    """Tokens: long, not half as long, a single one."""
    num = int(seconds * codec.token_rate)
    return [num - 1, int(0.4 * num), 1]


# The plan


@given(
    st.integers(1, 5000),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 7),
    st.integers(0, 200),
)
@example(1, 0, 0, 1, 0)
@example(101, 0, 0, 1, 100)
def test_kept_parts_tile_the_utterance(num_tokens, left, right, unit, extra):
    size = left + right + unit + extra
    plan = plan_windows(num_tokens, size, left, right, unit, row=3)
    assert plan[0].keep_start == 0
    assert plan[-1].keep_stop == plan[-1].stop == num_tokens
    for i, window in enumerate(plan):
        assert window.row == 3
        assert window.start % unit == 0
        assert window.start <= window.keep_start < window.keep_stop
        assert window.keep_stop <= window.stop <= num_tokens
        assert window.stop - window.start <= size
        if i:
            assert window.keep_start == plan[i - 1].keep_stop
            assert window.keep_start - window.start >= left
            assert window.start > plan[i - 1].start
        if i < len(plan) - 1:
            assert window.stop - window.keep_stop == right
        if len(plan) > 1:
            assert window.stop - window.start > size - unit
    assert (len(plan) == 1) == (num_tokens <= size)


def test_a_window_without_room_is_refused():
    with pytest.raises(ValueError, match="size must be at least 22 tokens"):
        plan_windows(100, 21, 10, 10, 2)


def test_sizes():
    codec = OFFLINE["offline_12_5hz"]
    assert encode_sizes(codec, 30.0, 2.0) == Sizes(375, 25, 25)
    assert encode_sizes(codec, None, 2.0).size > 1 << 60
    # Zeros beyond a cut are seen by two frames of log-mel; one token here.
    assert encode_sizes(OFFLINE["mini"], 30.0, 0.0) == Sizes(1500, 2, 2)
    assert encode_sizes(OFFLINE["log_mel_down_6"], 30, 0) == Sizes(250, 1, 1)
    # Three blocks of 7 + 9 taps, six layers and one of 7, overlapping frames.
    assert decode_sizes(OFFLINE["mini"], 30.0) == Sizes(1500, 44, 44)
    # No window so short that most of it were context.
    assert decode_sizes(OFFLINE["mini"], 0.1) == Sizes(176, 44, 44)
    # Whole chunks of four frames.
    assert encode_sizes(CAUSAL["causal_50hz"], 1.3, 0.3) == Sizes(64)
    assert decode_sizes(CAUSAL["causal_50hz"], 0.01) == Sizes(4)
    # Whole chunks of attention (5 frames) and of the refiner (6 frames) start
    # a window; a token is 4 frames.
    assert encode_sizes(OFFLINE["mixed"], 30.0, 2.0).unit == 5
    assert decode_sizes(OFFLINE["mixed"], 30.0).unit == 3


# What fits one window


@torch.no_grad()
@pytest.mark.parametrize("name", [*OFFLINE, *CAUSAL])
def test_one_window_is_bit_identical(name):
    codec = {**OFFLINE, **CAUSAL}[name]
    sig = speech(codec, [16000, 9000])
    lengths = torch.tensor([16000, 9000])
    feats = codec.sig_to_feats(sig)
    toks = codec.lats_to_toks(codec.feats_to_lats(feats))
    rec = codec.feats_to_sig(codec.codes_to_qfeats(codec.toks_to_codes(toks)))
    assert torch.equal(codec.encode(sig, window=2, context=0.3)[0], toks)
    assert torch.equal(codec.decode(toks, window=2)[0], rec)
    feats, num = codec.sig_to_feats(sig, lengths)
    lats, num = codec.feats_to_lats(feats, num)
    toks, num = codec.lats_to_toks(lats, num)
    got, tok_lengths = codec.encode(sig, lengths)
    assert torch.equal(got, toks) and torch.equal(tok_lengths, num)
    codes, _ = codec.toks_to_codes(toks, num)
    feats, frames = codec.codes_to_qfeats(codes, num)
    rec, samples = codec.feats_to_sig(feats, frames)
    got, sig_lengths = codec.decode(toks, num)
    assert torch.equal(got, rec) and torch.equal(sig_lengths, samples)


@torch.no_grad()
def test_padding_that_makes_a_batch_long_is_cut():
    codec = OFFLINE["offline_50hz"]
    sig, lengths = speech(codec, [80000, 80000]), torch.tensor([16000, 9000])
    toks, num = codec.encode(sig, lengths, window=2, context=0.3)
    want, _ = codec.encode(sig[:, :16000], lengths)
    assert torch.equal(toks, want)
    padded = torch.nn.functional.pad(toks, (0, 300))
    rec, _ = codec.decode(padded, num, window=2)
    assert torch.equal(rec, codec.decode(toks, num)[0])


# Decoding


@torch.no_grad()
@pytest.mark.parametrize("name", OFFLINE)
def test_windows_decode_as_one_pass_does(name):
    codec = OFFLINE[name]
    sizes = decode_sizes(codec, WINDOW)
    lengths = three_lengths(codec, 2.7 * sizes.size / codec.token_rate)
    assert len(sizes.plan(lengths)) >= 6
    toks, num = random_toks(codec, lengths), torch.tensor(lengths)
    want, samples = codec.decode(toks, num, window=None)
    got, got_lengths = codec.decode(toks, num, window=WINDOW, batch_size=2)
    assert torch.equal(got_lengths, samples)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    # Without lengths, and piece by piece.
    want, _ = codec.decode(toks[:1], window=None)
    got, _ = codec.decode(toks[:1], window=WINDOW)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    pieces = list(codec.decode_stream(toks[0], window=WINDOW))
    assert len(pieces) == len(sizes.plan(lengths[:1]))
    assert torch.equal(torch.cat(pieces), got[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["offline_12_5hz", "v001_50hz", "mini"])
def test_means_of_single_windows_are_something_else(name, monkeypatch):
    """The test above can fail: the means matter."""
    codec = OFFLINE[name]
    monkeypatch.setattr(
        "speechbrain_focalcodec.modules.means.TimeMeans.mean",
        lambda self, x: x.mean(1, keepdim=True),
    )
    monkeypatch.setattr(
        "speechbrain_focalcodec.windowed._add_mean", lambda *args: None
    )
    toks = random_toks(codec, [int(20 * codec.token_rate)])
    want, _ = codec.decode(toks, window=None)
    got, _ = codec.decode(toks, window=WINDOW)
    assert (got - want).abs().max() > 1e-4


@pytest.mark.parametrize("name", OFFLINE)
def test_context_of_a_decoder_is_what_it_depends_on(name, monkeypatch):
    """Not less, and more by rounding to whole tokens and chunks only."""
    codec = copy.deepcopy(OFFLINE[name]).double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    if not codec.config.decompressor_config.causal:  # leave the means out
        monkeypatch.setattr(FocalModulation, "_mean", no_mean)
    sizes = decode_sizes(codec, 0.0)
    middle = sizes.left + 3 * sizes.unit
    codes = codec.toks_to_codes(random_toks(codec, [2 * sizes.size]))
    codes = codes.double().requires_grad_()
    sig = codec.feats_to_sig(codec.codes_to_qfeats(codes))
    hop = codec.output_hop_length
    sig[:, middle * hop : (middle + 1) * hop].square().sum().backward()
    seen = codes.grad[0].abs().sum(-1).nonzero()[:, 0]
    left, right = middle - seen.min(), seen.max() - middle
    slack = 2 * sizes.unit
    assert sizes.left - slack < left <= sizes.left
    assert sizes.right - slack < right <= sizes.right


# Causal models


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("window", [0.16, 1.0])
def test_causal_slices_equal_one_pass(name, window):
    codec = CAUSAL[name]
    chunk = codec.chunk_length
    sig = speech(codec, [20 * chunk + 701, 11 * chunk, 1, 3 * chunk + 320])
    lengths = torch.tensor([20 * chunk + 701, 11 * chunk, 1, 3 * chunk + 320])
    want, num = codec.encode(sig, lengths, window=None)
    toks, got = codec.encode(sig, lengths, window=window)
    assert torch.equal(toks, want) and torch.equal(got, num)
    rec, samples = codec.decode(toks, num, window=None)
    for batch_size in (None, 3):
        part, got = codec.decode(
            toks, num, window=window, batch_size=batch_size
        )
        assert torch.equal(got, samples)
        torch.testing.assert_close(part, rec, rtol=0, atol=1e-4)
        part, _ = codec.encode(
            sig, lengths, window=window, batch_size=batch_size
        )
        assert torch.equal(part, toks)
    stream = codec.encode_stream(
        lambda i, j: sig[0, i:j], sig.shape[1], window=window
    )
    assert torch.equal(stream, toks[0])
    pieces = list(codec.decode_stream(toks[0], window=window))
    assert len(pieces) == -(-len(toks[0]) // decode_sizes(codec, window).size)
    torch.testing.assert_close(
        torch.cat(pieces), rec[0, : samples[0]], rtol=0, atol=1e-4
    )


# Encoding


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    "offline_50hz offline_12_5hz offline_options log_mel_down_6 mixed "
    "causal_50hz down_scaled".split(),
)
@settings(max_examples=4)
@given(st.integers(1, 90 * 16000))
@example(1)
@example(319)
@example(400)
@example(90 * 16000)
def test_as_many_tokens_as_one_pass_gives(name, length):
    codec = {**OFFLINE, **CAUSAL}[name]
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return torch.zeros(stop - start)

    toks = codec.encode_stream(read, length, window=3 * WINDOW, context=CONTEXT)
    samples = torch.tensor(length)
    frames = codec.encoder.output_lengths(samples)
    assert len(toks) == codec.num_tokens(length)
    assert len(toks) == codec.compressor.output_lengths(frames)
    # In order, within the signal, up to its end, never much at once.
    assert sorted(reads) == reads
    assert reads[0][0] == 0 and max(stop for _, stop in reads) == length
    most = encode_sizes(codec, 3 * WINDOW, CONTEXT).size * codec.hop_length
    most += codec.hop_length + codec.encoder.overhang
    assert max(stop - start for start, stop in reads) < most


@torch.no_grad()
@pytest.mark.parametrize("name", OFFLINE)
def test_kept_tokens_are_those_of_their_windows(name):
    """Each window encoded by itself; whatever else is in the batch."""
    codec = OFFLINE[name]
    lengths = [16000 * 7 + 123, 5000, 16000 * 3 + 77, 1]
    sig = speech(codec, lengths)
    arguments = {"window": WINDOW, "context": CONTEXT}
    toks, num = codec.encode(sig, torch.tensor(lengths), **arguments)
    assert num.tolist() == [codec.num_tokens(n) for n in lengths]
    hop = codec.hop_length
    for row, length in enumerate(lengths):
        parts = []
        plan = encode_sizes(codec, **arguments).plan([num[row]])
        for window in plan:
            stop = window.stop * hop + codec.encoder.overhang
            if window.stop == num[row]:
                stop = length
            part, _ = codec.encode(
                sig[row : row + 1, window.start * hop : stop]
            )
            assert part.shape[1] == window.stop - window.start
            parts.append(part[0, window.kept()])
        want = torch.cat(parts)
        assert torch.equal(toks[row, : num[row]], want)
        assert not toks[row, num[row] :].any()
        alone = sig[row, :length]
        got = codec.encode_stream(
            lambda i, j, alone=alone: alone[i:j], length, **arguments
        )
        assert torch.equal(got, want)


@torch.no_grad()
def test_windows_of_a_local_encoder_differ_by_means_only(monkeypatch):
    """With enough context and no means, windows encode as one pass does."""
    monkeypatch.setattr(FocalModulation, "_mean", no_mean)
    codec = OFFLINE["mini"]
    sig = speech(codec, [16000 * 8 + 5])
    want, _ = codec.encode(sig, window=None)
    toks, _ = codec.encode(sig, window=3, context=1)
    assert torch.equal(toks, want)
    toks, _ = codec.encode(sig, window=3, context=0)
    assert not torch.equal(toks, want)


@torch.no_grad()
@pytest.mark.parametrize("name", ["offline_25hz", "causal_50hz"])
def test_resynthesis_by_windows(name):
    codec = {**OFFLINE, **CAUSAL}[name]
    lengths = torch.tensor([16000 * 6 + 5, 700])
    sig = speech(codec, lengths.tolist())
    arguments = {"window": WINDOW, "batch_size": 1}
    rec, num = codec.resynthesize(sig, lengths, context=CONTEXT, **arguments)
    toks, tok_lengths = codec.encode(sig, lengths, context=CONTEXT, **arguments)
    want, _ = codec.decode(toks, tok_lengths, **arguments)
    assert torch.equal(num, codec.output_num_samples(lengths))
    assert rec.shape[1] == num.max()
    for row, length in enumerate(num):
        size = min(length, want.shape[1])
        assert torch.equal(rec[row, :size], want[row, :size])
        assert not rec[row, length:].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["offline_25hz", "causal_50hz"])
def test_low_precision_by_windows(name):
    codec = {**OFFLINE, **CAUSAL}[name]
    path = PARITY / name
    codec = FocalCodec.from_pretrained(path).bfloat16()
    sig = speech(codec, [16000 * 5])
    toks, _ = codec.encode(sig.bfloat16(), window=WINDOW, context=CONTEXT)
    stream = codec.encode_stream(
        lambda i, j: sig[0, i:j], sig.shape[1], window=WINDOW, context=CONTEXT
    )
    assert torch.equal(stream, toks[0])
    assert codec.decode(toks, window=WINDOW)[0].isfinite().all()


def test_streams_keep_no_gradients():
    codec = OFFLINE["offline_50hz"]
    toks = random_toks(codec, [300])
    pieces = codec.decode_stream(toks[0], window=WINDOW)
    assert not any(piece.requires_grad for piece in pieces)
    assert torch.is_grad_enabled()
    assert codec.decode(toks, window=WINDOW)[0].requires_grad


# Bad input

SIG = torch.zeros(1, 16000)
TOKS = torch.zeros(1, 50, dtype=torch.int64)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda c: c.encode(SIG, window=-1), "window must be a number of sec"),
        (lambda c: c.encode(SIG, window="30"), "window must be a number.*'30'"),
        (lambda c: c.encode(SIG, window=True), "window must be a number"),
        (lambda c: c.encode(SIG, window=float("inf")), "window must.*inf"),
        (lambda c: c.encode(SIG, context=-0.1), "context must be a number"),
        (lambda c: c.encode(SIG, context=None), "context must be a number"),
        (
            lambda c: c.encode(SIG, window=4, context=2),
            "window must be longer than twice the context, 2 seconds",
        ),
        (lambda c: c.decode(TOKS, window=-1), "window must be a number of sec"),
        (lambda c: c.encode(SIG, batch_size=0), "batch_size must be at least"),
        (lambda c: c.decode(TOKS, batch_size=1.5), "batch_size must be an int"),
        (lambda c: c.encode(SIG[:, :0], window=5), r"sig must.*not empty"),
        (lambda c: c.resynthesize(SIG[:, :0]), r"sig must.*not empty"),
        (lambda c: c.encode_stream(None, 0), "num_samples must be at least 1"),
        (
            lambda c: c.encode_stream(lambda i, j: SIG[0, :5], 9),
            r"read\(0, 9\) must give a tensor \[9\], got \[5\]",
        ),
        (lambda c: c.decode_stream(TOKS[0, :0]), r"toks must.*\[N\].*empty"),
        (lambda c: c.decode_stream(TOKS), r"toks must be a tensor \[N\]"),
        (
            lambda c: c.decode(TOKS, torch.tensor([51])),
            r"tok_lengths must lie in 1\.\.50",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call(OFFLINE["offline_50hz"])


def test_bad_tokens_are_found_before_any_work():
    codec = OFFLINE["offline_50hz"]
    toks = TOKS.repeat(1, 20)
    toks[0, -1] = 32
    with pytest.raises(TokenError, match=r"0\.\.31.*got 0\.\.32"):
        codec.decode_stream(toks[0], window=WINDOW)
    with pytest.raises(TokenError, match=r"0\.\.31.*got 0\.\.32"):
        codec.decode(toks, window=WINDOW)


@torch.no_grad()
def test_context_is_no_matter_to_a_causal_model():
    codec = CAUSAL["causal_50hz"]
    sig = speech(codec, [16000])
    toks, _ = codec.encode(sig, window=0.5, context=7)
    assert torch.equal(toks, codec.encode(sig)[0])
