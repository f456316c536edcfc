"""Any length in bounded memory: windows against a single pass."""

import copy
from unittest import mock

import pytest
import torch
from causal_codecs import CODECS as STREAMING_CODECS
from causal_codecs import make_codec
from conftest import PARITY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_masking import CODECS as MASKING_CODECS

from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import TokenError
from speechbrain_focalcodec.long_audio.passes import run_passes
from speechbrain_focalcodec.long_audio.schedule import (
    decode_passes,
    encode_passes,
)
from speechbrain_focalcodec.long_audio.windows import Sizes
from speechbrain_focalcodec.modules.means import TimeMeans

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
    return FocalCodec.from_config(config, name="mixed").eval()


OFFLINE["mixed"] = mixed_codec()


def speech(codec: FocalCodec, lengths: list[int]) -> torch.Tensor:
    """Loud noise within and beyond the lengths."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return 0.3 * torch.randn(len(lengths), max(lengths), generator=generator)


def random_toks(codec: FocalCodec, lengths: list[int]) -> torch.Tensor:
    shape = (len(lengths), max(lengths))
    return torch.randint(codec.codebook_size, shape)


def three_lengths(num: int) -> list[int]:
    """Tokens: long, not half as long, a single one."""
    return [num - 1, int(0.4 * num), 1]


# The plan


def test_sizes():
    codec = OFFLINE["offline_12_5hz"]
    passes = encode_passes(codec, 30.0, 2.0)
    # Blocks of 7 + 9 taps, at the rate after down-scaling.
    assert [step.sizes for step in passes] == [
        Sizes(1500, 100, 100),
        *[Sizes(size, 7, 7) for size in (750, 375, 375)],
    ]
    assert [step.hop_in for step in passes] == [320, 2, 2, 1]
    passes = decode_passes(codec, 30.0)
    assert [step.sizes.size for step in passes] == [375, 375, 750]
    assert [step.hop_out for step in passes] == [1, 2, 640]
    assert encode_passes(codec, None, 2.0)[0].sizes.size > 1 << 60
    # Zeros beyond a cut are seen by two frames of log-mel.
    passes = encode_passes(OFFLINE["mini"], 30.0, 0.0)
    assert passes[0].sizes == Sizes(1500, 2, 2)
    # The decoder's six layers of 7 taps, one of 7, overlapping frames.
    passes = decode_passes(OFFLINE["mini"], 30.0)
    assert [step.sizes.left for step in passes] == [7, 7, 7 + 6 * 3 + 3 + 2]
    # No window so short that most of it were context.
    assert decode_passes(OFFLINE["mini"], 0.1)[0].sizes == Sizes(28, 7, 7)
    # Whole chunks of attention (5 frames) and of the refiner (6 frames) start
    # a window.
    assert encode_passes(OFFLINE["mixed"], 30.0, 2.0)[0].sizes.unit == 5
    assert decode_passes(OFFLINE["mixed"], 30.0)[-1].sizes.unit == 3
    # A causal model's slices are whole chunks of four frames.
    codec, toks = CAUSAL["causal_50hz"], torch.zeros(70, dtype=torch.int64)
    for window, sizes in ((0.01, [4] * 17 + [2]), (1.3, [64, 6])):
        pieces = codec.decode_stream(toks, window=window)
        assert [len(piece) // 480 for piece in pieces] == sizes


# A single window


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
def test_excess_padding_of_a_batch_is_cropped():
    codec = OFFLINE["offline_50hz"]
    sig, lengths = speech(codec, [80000, 80000]), torch.tensor([16000, 9000])
    toks, num = codec.encode(sig, lengths, window=2, context=0.3)
    want, _ = codec.encode(sig[:, :16000], lengths)
    assert torch.equal(toks, want)
    padded = torch.nn.functional.pad(toks, (0, 300))
    rec, _ = codec.decode(padded, num, window=2)
    assert torch.equal(rec, codec.decode(toks, num)[0])


# Passes against a single one


@torch.no_grad()
@pytest.mark.parametrize("name", OFFLINE)
def test_decoding_in_windows_equals_a_single_pass(name):
    codec = OFFLINE[name]
    passes = decode_passes(codec, WINDOW)
    lengths = three_lengths(3 * max(step.sizes.size for step in passes))
    toks, num = random_toks(codec, lengths), torch.tensor(lengths)
    want, samples = codec.decode(toks, num, window=None)
    got, got_lengths = codec.decode(toks, num, window=WINDOW, batch_size=2)
    assert torch.equal(got_lengths, samples)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    # Without lengths, and piece by piece.
    got, _ = codec.decode(toks[:1, : lengths[0]], window=WINDOW)
    torch.testing.assert_close(got, want[:1], rtol=0, atol=1e-5)
    pieces = list(codec.decode_stream(toks[0], window=WINDOW))
    assert len(pieces) >= 3
    assert torch.equal(torch.cat(pieces), got[0])


def latents(codec, passes, x, lengths, batch_size):
    """Latents of passes before quantization, utterance by utterance."""
    found = [[] for _ in lengths]
    with mock.patch.object(codec.quantizer, "lats_to_toks", lambda lats: lats):
        for row, part in run_passes(
            passes, lambda row, i, j: x[row, i:j], lengths, batch_size
        ):
            found[row].append(part)
    return [torch.cat(parts) for parts in found]


@torch.no_grad()
@pytest.mark.parametrize("name", OFFLINE)
@settings(max_examples=3)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=3),
    st.floats(0.01, 3),
    st.integers(1, 3),
)
@example([397, 3, 130], 0.01, 2)
def test_compressing_in_windows_equals_a_single_pass(
    name, lengths, window, batch_size
):
    """Latents of the same features, layer by layer."""
    codec = OFFLINE[name]
    feats = torch.randn(len(lengths), max(lengths), codec.encoder.output_dim)
    want, num = codec.feats_to_lats(feats, torch.tensor(lengths))
    passes = encode_passes(codec, window, 0.0)[1:]
    got = latents(codec, passes, feats, lengths, batch_size)
    for row, lats in enumerate(got):
        torch.testing.assert_close(
            lats, want[row, : num[row]], rtol=0, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [name for name in OFFLINE if name.startswith("log_mel")]
)
def test_encoding_in_windows_equals_a_single_pass_for_local_encoders(name):
    codec = OFFLINE[name]
    lengths = [16000 * 9 + 5, 700, 16000 * 4]
    sig = speech(codec, lengths)
    feats, num = codec.sig_to_feats(sig, torch.tensor(lengths))
    want, num = codec.feats_to_lats(feats, num)
    passes = encode_passes(codec, WINDOW, 0.0)
    for row, lats in enumerate(latents(codec, passes, sig, lengths, 2)):
        torch.testing.assert_close(
            lats, want[row, : num[row]], rtol=0, atol=1e-5
        )


def one_mean_a_window(monkeypatch):
    """As windows had it without passes for the means."""
    monkeypatch.setattr(
        "speechbrain_focalcodec.modules.means.TimeMeans.mean",
        lambda self, x: x.mean(1, keepdim=True),
    )
    monkeypatch.setattr(
        "speechbrain_focalcodec.long_audio.passes._mean",
        lambda step, read, groups, steps: torch.zeros(len(steps), 1),
    )


@torch.no_grad()
def test_a_minute_of_speech_has_the_same_tokens_in_windows(monkeypatch):
    codec = OFFLINE["mini"]
    sig, _ = read_audio(DEMO_CLIP, codec.sample_rate_input)
    sig = sig.repeat(-(-60 * 16000 // len(sig)))[None, : 60 * 16000]
    want, _ = codec.encode(sig, window=None)
    for window in (2, 7.7):
        toks, _ = codec.encode(sig, window=window, context=0, batch_size=3)
        assert torch.equal(toks, want)
    one_mean_a_window(monkeypatch)
    toks, _ = codec.encode(sig, window=7.7, context=2)
    assert (toks != want).float().mean() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", ["offline_12_5hz", "v001_50hz", "mini"])
def test_decoding_with_means_of_windows_differs(name, monkeypatch):
    one_mean_a_window(monkeypatch)
    codec = OFFLINE[name]
    toks = random_toks(codec, [int(20 * codec.token_rate)])
    want, _ = codec.decode(toks, window=None)
    got, _ = codec.decode(toks, window=WINDOW)
    assert (got - want).abs().max() > 1e-4


@pytest.mark.parametrize("name", OFFLINE)
def test_the_context_of_a_pass_equals_its_receptive_field(name, monkeypatch):
    """Not less, and more by rounding to whole frames and chunks only."""
    codec = copy.deepcopy(OFFLINE[name]).double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    codec.quantizer.lats_to_toks = lambda lats: lats
    codec.quantizer.toks_to_codes = lambda codes: codes
    passes = {
        codec.compressor: encode_passes(codec, 0.01, 0.0)[1:],
        codec.decompressor: decode_passes(codec, 0.0),
    }
    for module, steps in passes.items():
        dim = {codec.compressor: codec.encoder.output_dim}.get(
            module, codec.quantizer.dim
        )
        for step, layer in zip(steps, module.layers, strict=True):
            sizes = step.sizes
            middle = sizes.left + 3 * sizes.unit
            num = 2 * sizes.size
            x = torch.randn(1, num * step.hop_in, dim, dtype=torch.float64)
            x.requires_grad_()
            block = layer.focal_block.modulation.dim
            mean = TimeMeans(x.new_zeros(1, block)) if step.has_mean else None
            y = step.run(x, None, mean)
            hop = step.hop_out
            assert y.shape[1] == num * hop
            heard = y[:, middle * hop : (middle + 1) * hop]
            # Squares would not do: latents have a length of 1.
            (heard * torch.randn_like(heard)).sum().backward()
            seen = x.grad[0].abs().sum(-1).nonzero()[:, 0] // step.hop_in
            left, right = middle - seen.min(), seen.max() - middle
            slack = 2 * sizes.unit
            assert sizes.left - slack < left <= sizes.left
            assert sizes.right - slack < right <= sizes.right
            dim = y.shape[-1]


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
    most = max(window * 16000, chunk) / 16000 * codec.sample_rate_output
    assert max(len(piece) for piece in pieces) <= most
    torch.testing.assert_close(
        torch.cat(pieces), rec[0, : samples[0]], rtol=0, atol=1e-4
    )


# Encoding

SWEPT = (
    "offline_50hz offline_12_5hz offline_options log_mel_down_6 mixed "
    "causal_50hz down_scaled"
).split()


@torch.no_grad()
@settings(max_examples=8)
@given(st.sampled_from(SWEPT), st.integers(1, 90 * 16000))
@example("offline_12_5hz", 1)
@example("offline_50hz", 319)
@example("mixed", 400)
@example("offline_options", 90 * 16000)
@example("down_scaled", 90 * 16000)
def test_the_number_of_tokens_equals_a_single_pass(name, length):
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
    most = 3 * WINDOW * codec.sample_rate_input + 2 * codec.hop_length
    assert max(stop - start for start, stop in reads) < most


@torch.no_grad()
@pytest.mark.parametrize("name", OFFLINE)
def test_kept_features_equal_those_of_their_windows(name):
    """Each window encoded by itself."""
    codec = OFFLINE[name]
    length = 16000 * 5 + 123
    sig = speech(codec, [length])
    encoder = encode_passes(codec, WINDOW, CONTEXT)[0]
    parts = run_passes([encoder], lambda row, i, j: sig[row, i:j], [length], 2)
    num = encoder.count(length)
    plan = encoder.sizes.plan([num])
    for window, (_, got) in zip(plan, parts, strict=True):
        stop = window.stop * codec.encoder.hop_length + codec.encoder.overhang
        if window.stop == num:
            stop = length
        want = codec.encoder(
            sig[:, window.start * codec.encoder.hop_length : stop]
        )
        assert want.shape[1] == window.stop - window.start
        torch.testing.assert_close(
            got, want[0, window.kept()], rtol=0, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("name", OFFLINE)
def test_tokens_do_not_depend_on_the_batch(name):
    codec = OFFLINE[name]
    lengths = [16000 * 4 + 123, 5000, 16000 * 2 + 77, 1]
    sig = speech(codec, lengths)
    arguments = {"window": WINDOW, "context": CONTEXT}
    toks, num = codec.encode(sig, torch.tensor(lengths), **arguments)
    assert num.tolist() == [codec.num_tokens(n) for n in lengths]
    for row, length in enumerate(lengths):
        alone = sig[row, :length]
        got = codec.encode_stream(
            lambda i, j, alone=alone: alone[i:j], length, **arguments
        )
        assert torch.equal(got, toks[row, : num[row]])
        assert not toks[row, num[row] :].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["offline_25hz", "causal_50hz"])
def test_resynthesis_in_windows(name):
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
def test_low_precision_in_windows(name):
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
    # Neither do passes; a single one does.
    assert not codec.decode(toks, window=WINDOW)[0].requires_grad
    assert codec.decode(toks, window=None)[0].requires_grad


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
            r"read\(0, 9\) must return a tensor \[9\], got \[5\]",
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
def test_context_has_no_effect_on_a_causal_model():
    codec = CAUSAL["causal_50hz"]
    sig = speech(codec, [16000])
    toks, _ = codec.encode(sig, window=0.5, context=7)
    assert torch.equal(toks, codec.encode(sig)[0])
