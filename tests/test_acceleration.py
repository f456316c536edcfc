"""Options that trade exactness for speed, and the fast exact paths."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec import FocalCodec, acceleration
from speechbrain_focalcodec.acceleration import RowwiseInt8, accelerate
from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.model_files import DEFAULT_MODEL
from speechbrain_focalcodec.modules import layouts, scaling
from speechbrain_focalcodec.modules.derived import Derived, fast_path
from speechbrain_focalcodec.modules.extractor import SEGMENT, FeatureExtractor
from speechbrain_focalcodec.modules.layouts import (
    PACKED_FRAMES,
    Linear,
    PointwiseConv,
    StridedConv,
    WideConv,
    depthwise_conv,
)
from speechbrain_focalcodec.modules.scaling import UpScale

CLIP = "speechbrain_focalcodec/assets/demo.flac"


def close(a, b):
    return torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def plainly(module, *args):
    """Output of the plain path: gradients disable the fast one."""
    with torch.enable_grad():
        return module(*args).detach()


@given(
    taps=st.integers(1, 11),
    stride=st.integers(1, 6),
    width=st.sampled_from([1, 3]),
    extra=st.integers(0, 40),
    batch=st.integers(1, 3),
)
def test_strided_convolution_as_products(taps, stride, width, extra, batch):
    conv = StridedConv(width, 5, taps, stride)
    x = torch.randn(batch, taps + extra, width)
    want = F.conv1d(x.mT, conv.weight, conv.bias, stride).mT
    with torch.no_grad():
        close(conv(x), want)
        # A view that is not contiguous, with an offset.
        view = torch.randn(batch, width, taps + extra + 3).mT[:, 3:]
        close(conv(view), plainly(conv, view))


@given(
    taps=st.integers(30, 70),
    steps=st.integers(1, 300),
    groups=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 2),
)
def test_wide_convolution_by_spectra(taps, steps, groups, batch):
    conv = WideConv(8, taps, groups)
    x = torch.randn(batch, taps + steps - 1, 8)
    with torch.no_grad():
        got = conv(x)
        assert got.shape == (batch, steps, 8)
        close(got, plainly(conv, x))


@given(
    taps=st.integers(1, 9), padding=st.integers(0, 4), extra=st.integers(0, 9)
)
def test_depthwise_convolution(taps, padding, extra):
    conv = nn.Conv1d(6, 6, taps, groups=6, padding=padding)
    x = torch.randn(2, taps + extra, 6)
    got = depthwise_conv(x, conv.weight, conv.bias, padding)
    close(got, conv(x.mT).mT)


@given(factor=st.integers(1, 3), steps=st.integers(1, 9))
def test_up_scaling_is_the_transposed_convolution(factor, steps):
    module = UpScale(4, 6, factor)
    nn.init.normal_(module.upscale.bias)
    x = torch.randn(2, steps, 4)
    want = module.upscale(module.activation(x).mT).mT
    close(module(x), want)


def test_pointwise_convolution():
    conv = PointwiseConv(4, 6)
    x = torch.randn(2, 9, 4)
    close(conv(x), F.conv1d(x.mT, conv.weight, conv.bias).mT)


@given(
    st.integers(1, 2 * SEGMENT * 8 + 200),
    st.integers(1, 2 * SEGMENT * 8 + 200),
)
def test_segments_of_the_extractor_equal_the_whole(length, other):
    torch.manual_seed(0)
    extractor = FeatureExtractor((4, 4, 4), (10, 3, 2), (2, 2, 2)).eval()
    sig = torch.randn(2, 3 * SEGMENT * 8)
    lengths = torch.tensor([length, other])
    frames = extractor.output_lengths(lengths)
    with torch.no_grad():
        got = extractor(sig, lengths)
    want = plainly(extractor, sig, lengths)
    assert got.shape == want.shape
    for row, count in enumerate(frames):
        close(got[row, :count], want[row, :count])


@torch.no_grad()
def test_derived_tensors_follow_the_weight():
    linear = nn.Linear(2, 3)
    derived = Derived(torch.t).eval()
    first = derived(linear.weight)
    assert derived(linear.weight) is first
    linear.weight.mul_(2)
    assert torch.equal(derived(linear.weight), linear.weight.T)
    linear.load_state_dict({"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    assert torch.equal(derived(linear.weight), torch.ones(2, 3))
    linear.bfloat16()
    assert derived(linear.weight).dtype == torch.bfloat16
    kept = derived(linear.weight)
    derived.train()
    assert derived(linear.weight) is not kept
    assert copy.deepcopy(derived)._kept is None
    assert pickle.loads(pickle.dumps(derived))._kept is None
    derived(linear.weight)
    derived.to(torch.float64)
    assert derived._kept is None


def scale(codec):
    for weight in codec.parameters():
        weight.data.mul_(1.1)


def set_one(codec):
    for weight in codec.parameters():
        weight.data.view(-1)[0] = 0.3


def step(codec):
    optimizer = torch.optim.AdamW(codec.parameters(), 1e-2)
    with torch.enable_grad():
        codec.sig_to_feats(SIG).square().mean().backward()
    optimizer.step()


def load(codec):
    state = codec.state_dict()
    codec.load_state_dict({name: 1.1 * x for name, x in state.items()})


def average(codec):
    for weight in codec.parameters():
        weight.data.mul_(0.9).add_(torch.ones_like(weight), alpha=0.01)


def swap(codec):
    """Away and back, changed in the meantime."""
    before = [weight.data for weight in codec.parameters()]
    for weight in codec.parameters():
        weight.data = weight.data.clone()
    for weight in before:
        weight.mul_(1.1)
    for weight, old in zip(codec.parameters(), before, strict=True):
        weight.data = old


def flatten(codec):
    """All weights are views of one tensor, which is changed."""
    vector = nn.utils.parameters_to_vector(codec.parameters()).detach()
    nn.utils.vector_to_parameters(vector, codec.parameters())
    codec.encode(SIG)
    before = codec.fingerprint
    vector.mul_(1.1)
    assert codec.accelerated or codec.fingerprint != before


def share(codec):
    codec.share_memory()
    codec.encode(SIG)
    before = codec.fingerprint
    scale(codec)
    assert codec.accelerated or codec.fingerprint != before


SIG = 0.1 * torch.randn(1, 12000, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("accelerated", [None, "bf16"])
@pytest.mark.parametrize(
    "change", [scale, set_one, step, load, average, swap, flatten, share]
)
def test_changed_weights_are_always_seen(parity, packing, change, accelerated):
    codec = FocalCodec.from_pretrained(parity / "causal_50hz")
    accelerate(codec, accelerated)
    toks, _ = codec.encode(SIG)
    codec.decode(toks)
    before = [weight.clone() for weight in codec.parameters()]
    fingerprint = codec.fingerprint
    change(codec)
    assert packing and not all(map(torch.equal, before, codec.parameters()))
    # A copy starts with an empty cache.
    new = copy.deepcopy(codec)
    assert new.fingerprint == codec.fingerprint
    if accelerated is None:
        assert codec.fingerprint != fingerprint
    # Shared weights are not packed, which rounds otherwise.
    atol = 1e-5 if accelerated is None else 0.05
    for method, x in ((codec.sig_to_feats, SIG), (codec.decode, toks)):
        got, want = method(x), getattr(new, method.__name__)(x)
        torch.testing.assert_close(got, want, atol=atol, rtol=1e-4)


@torch.no_grad()
def test_unchanged_weights_are_derived_once(parity, monkeypatch):
    codec = FocalCodec.from_pretrained(parity / "offline_50hz")
    codec.encode(SIG), codec.fingerprint, codec.encode(SIG)
    derived = [m for m in codec.modules() if isinstance(m, Derived)]
    kept = {m: m._kept for m in derived if m._kept is not None}
    assert kept
    codec.encode(SIG), codec.fingerprint
    assert all(m._kept is value for m, value in kept.items())


def test_derived_tensors_keep_gradients_and_inference_weights_apart():
    weight = torch.ones(2, 3, requires_grad=True)
    derived = Derived(torch.t)
    derived(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 3))
    with torch.inference_mode():
        inside = torch.ones(2, 3)
        derived(inside)
        inside.add_(1)
        assert torch.equal(derived(inside), 2 * torch.ones(3, 2))
        kept = derived(weight)
    assert not kept.is_inference()


def test_fast_path_is_for_plain_inference():
    x = torch.zeros(1)
    assert not fast_path(x)
    with torch.no_grad():
        assert fast_path(x)
        assert not fast_path(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not fast_path(x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("precision", "agreement"), [("bf16", 0.94), ("int8", 0.7)]
)
def test_low_precision_is_close(precision, agreement):
    exact = FocalCodec.from_pretrained(DEFAULT_MODEL)
    codec = FocalCodec.from_pretrained(DEFAULT_MODEL)
    assert accelerate(codec, precision) is codec
    assert codec.fingerprint == exact.fingerprint
    assert codec.accelerated == precision
    sig = read_audio(CLIP, codec.sample_rate_input)[0][None]
    want, _ = exact.encode(sig)
    toks, _ = codec.encode(sig)
    assert agreement < (toks == want).float().mean() < 1
    rec, ref = codec.decode(want)[0], exact.decode(want)[0]
    error = (rec - ref).norm() / ref.norm()
    assert 0 < error < (0.2 if precision == "bf16" else 0.5)
    for same in (copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))):
        assert torch.equal(same.encode(sig)[0], toks)
    with pytest.raises(ValueError, match="was accelerated.*save the model"):
        codec.save_pretrained("never")
    with pytest.raises(ValueError, match="accelerated before"):
        accelerate(codec, "bf16")


@torch.no_grad()
@pytest.mark.parametrize("name", ["offline_25hz", "causal_50hz"])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_low_precision_for_wavlm_models(name, precision, parity):
    codec = FocalCodec.from_pretrained(parity / name)
    accelerate(codec, precision)
    plain = [m for m in codec.modules() if type(m) is Linear]
    if precision == "int8":
        assert not plain
    else:
        assert {m.weight.dtype for m in plain} == {torch.bfloat16}
    sig = torch.randn(2, 24000)
    lengths = torch.tensor([24000, 9000])
    toks, tok_lengths = codec.encode(sig, lengths)
    rec, _ = codec.decode(toks, tok_lengths)
    assert rec.dtype == torch.float32 and rec.isfinite().all()


@torch.no_grad()
def test_autocast_of_wide_depthwise_convolutions_returns(parity):
    """oneDNN hangs in them; they run in float32 instead."""
    codec = FocalCodec.from_pretrained(parity / "causal_50hz")
    sig = torch.randn(1, 9600)
    with torch.autocast("cpu", torch.bfloat16):
        toks, _ = codec.encode(sig)
        rec, _ = codec.decode(toks)
    assert rec.isfinite().all()


def test_bad_options():
    codec = FocalCodec.from_pretrained(DEFAULT_MODEL)
    with pytest.raises(ValueError, match="precision must be one of bf16, int8"):
        accelerate(codec, "fp4")
    assert accelerate(codec) is codec and codec.accelerated is None


@pytest.fixture
def packing(monkeypatch):
    """oneDNN's own layout for small weights, too: where is it used?"""
    used = []
    monkeypatch.setattr(layouts, "PACKED_SIZE", 0)
    product = layouts.packed_product

    def packed_product(*args):
        used.append(args)
        return product(*args)

    for module in (layouts, scaling):
        monkeypatch.setattr(module, "packed_product", packed_product)
    return used


@pytest.mark.parametrize("frames", [1, 4, 63, 640, 641])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_packed_weights_have_the_same_output(packing, frames, bfloat16):
    linear = Linear(16, 24)
    x = torch.randn(frames, 16)
    if bfloat16:
        linear.bfloat16()
    tolerance = {"atol": 2e-2 if bfloat16 else 1e-5, "rtol": 1e-2}
    with torch.no_grad():
        for method in (linear, linear.then_gelu):
            want = plainly(method, x)
            torch.testing.assert_close(method(x), want, **tolerance)
    assert bool(packing) == (
        frames in PACKED_FRAMES.get(linear.weight.dtype, ())
    )


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "module",
    [
        PointwiseConv(6, 10),
        StridedConv(6, 10, 3, 2),
        StridedConv(6, 10, 7),
        StridedConv(6, 10, 2, 2, bias=False),
        UpScale(6, 10, 2),
        UpScale(6, 10, 1),
    ],
)
def test_few_frames_are_one_packed_product(packing, module, batch):
    x = torch.randn(batch, 9, 6)
    close(module(x), plainly(module, x))
    assert len(packing) == 1
    if isinstance(module, StridedConv):
        view = torch.randn(batch, 6, 12).mT[:, 3:]
        close(module(view), plainly(module, view))


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 4, 70])
def test_packed_taps_of_a_window(packing, steps):
    weight, bias = torch.randn(6, 1, 200), torch.randn(6)
    x = torch.randn(1, 199 + steps, 6)
    packed = Derived(layouts.pack_depthwise)
    for _ in range(2):
        got = depthwise_conv(x, weight, bias, packed=packed)
        want = F.conv1d(x.mT, weight, bias, groups=6).mT
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        weight.mul_(2)


@torch.no_grad()
@given(
    frames=st.integers(1, 70), inside=st.integers(1, 40), out=st.integers(1, 40)
)
def test_eight_bit_frames_do_not_depend_on_the_batch(frames, inside, out):
    weight, bias = torch.randn(inside, out).mT, torch.randn(out)
    layer = RowwiseInt8(weight, bias)
    # Frames of very different size; one of zeros.
    x = torch.randn(2, frames, inside) * torch.rand(2, frames, 1) ** 8
    x[0, 0] = 0
    got = layer(x)
    for row in (0, frames - 1):
        close(layer(x[1:, row : row + 1]), got[1:, row : row + 1])
    torch.testing.assert_close(got[0, 0], bias)
    error = (got - F.linear(x, weight, bias)).abs()
    size = x.abs().amax(-1, keepdim=True) * weight.abs().amax(1)
    assert bool((error <= size * inside / 100 + 1e-6).all())


@torch.no_grad()
def test_eight_bits_without_onednn_are_equal(monkeypatch):
    x, weight, bias = torch.randn(9, 300), torch.randn(7, 300), torch.randn(7)
    want = RowwiseInt8(weight, bias)(x)
    monkeypatch.setattr(acceleration, "multiplies_int8", lambda: False)
    close(RowwiseInt8(weight, bias)(x), want)


@pytest.mark.parametrize(("limit", "right"), [(2**15, False), (2**31, True)])
def test_overflowing_products_are_not_used(monkeypatch, limit, right):
    """As oneDNN's do on processors with AVX2 alone."""

    def multiply(rows, packed, scale, zero_points):
        exact = rows.float() @ rows.float().T
        return exact.clamp(max=limit)

    monkeypatch.setattr(acceleration, "_pack_int8", torch.clone)
    monkeypatch.setattr(acceleration, "_multiply_int8", multiply)
    assert acceleration.multiplies_int8.__wrapped__() is right


@pytest.mark.slow
@torch.no_grad()
def test_compiled_models_have_the_same_tokens(parity):
    exact = FocalCodec.from_pretrained(parity / "offline_50hz")
    codec = FocalCodec.from_pretrained(parity / "offline_50hz")
    accelerate(codec, compile=True)
    for length in (16000, 9000):
        sig = torch.randn(2, length)
        toks, _ = codec.encode(sig)
        assert torch.equal(toks, exact.encode(sig)[0])
        close(codec.decode(toks)[0], exact.decode(toks)[0])
