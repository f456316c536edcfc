"""The binary spherical quantizer and its entropy loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from speechbrain_focalcodec.modules.bsq import BinarySphericalQuantizer


def naive_entropy_loss(lats, codebook_size, weight, inverse_temperature):
    """By the definition: a softmax over all codes for each frame."""
    quantizer = BinarySphericalQuantizer(codebook_size)
    codes = quantizer.toks_to_codes(torch.arange(codebook_size)).double()
    logits = 2 * inverse_temperature * lats.double() @ codes.T
    probabilities = logits.softmax(-1)
    frame = torch.special.entr(probabilities).sum(-1).mean()
    mean = torch.special.entr(probabilities.mean(0)).sum()
    return frame - weight * mean


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("inverse_temperature", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_entropy_loss_is_exact(bits, inverse_temperature, weight):
    lats = F.normalize(torch.randn(40, bits), dim=-1)
    got = BinarySphericalQuantizer(2**bits).entropy_loss(
        lats[None], None, weight, inverse_temperature
    )
    want = naive_entropy_loss(lats, 2**bits, weight, inverse_temperature)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_gradient_of_entropy_loss_is_exact_and_finite():
    lats = F.normalize(torch.randn(30, 6), dim=-1)
    ours = lats.clone().requires_grad_()
    BinarySphericalQuantizer(64).entropy_loss(ours[None]).backward()
    theirs = lats.clone().requires_grad_()
    naive_entropy_loss(theirs, 64, 1.0, 100.0).backward()
    assert ours.grad.isfinite().all() and ours.grad.abs().sum() > 0
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_gradient_is_finite_where_codes_are_out_of_reach():
    """Most of 2^13 codes get a probability of exactly zero."""
    lats = F.normalize(torch.randn(1, 50, 13), dim=-1).requires_grad_()
    BinarySphericalQuantizer(8192).entropy_loss(lats).backward()
    assert lats.grad.isfinite().all() and lats.grad.abs().sum() > 0


def test_entropy_loss_ignores_padding():
    quantizer = BinarySphericalQuantizer(32)
    lats = F.normalize(torch.randn(2, 9, 5), dim=-1)
    lengths = torch.tensor([9, 4])
    alone = torch.cat([lats[0], lats[1, :4]])[None]
    got = quantizer.entropy_loss(lats, lengths)
    torch.testing.assert_close(got, quantizer.entropy_loss(alone))
    lats[1, 4:] = 100.0
    torch.testing.assert_close(got, quantizer.entropy_loss(lats, lengths))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    garbage=st.sampled_from([1e-3, 1.0, 1e6, math.inf, math.nan]),
    bits=st.sampled_from([1, 5, 13]),
    seed=st.integers(0, 1000),
)
def test_padding_never_counts(lengths, garbage, bits, seed):
    """Whatever it holds: neither in the loss nor in any gradient."""
    torch.manual_seed(seed)
    quantizer = BinarySphericalQuantizer(2**bits)
    parts = [F.normalize(torch.randn(n, bits), dim=-1) for n in lengths]
    alone = torch.cat(parts)[None].requires_grad_()
    # At least one frame of padding everywhere.
    batch = garbage * torch.randn(len(lengths), 10, bits)
    for row, part in zip(batch, parts, strict=True):
        row[: len(part)] = part
    batch.requires_grad_()
    want = quantizer.entropy_loss(alone)
    got = quantizer.entropy_loss(batch, torch.tensor(lengths))
    torch.testing.assert_close(got, want)
    want.backward()
    got.backward()
    gradients = [row[:n] for row, n in zip(batch.grad, lengths, strict=True)]
    torch.testing.assert_close(torch.cat(gradients), alone.grad[0])
    for row, length in zip(batch.grad, lengths, strict=True):
        assert (row[length:] == 0).all()


def test_entropy_loss_of_two_to_the_sixteen_codes_is_small():
    """frames x 2^(d/2) numbers, not frames x 2^d (which would be 4 GB)."""
    quantizer = BinarySphericalQuantizer(2**16)
    lats = F.normalize(torch.randn(1, 16000, 16), dim=-1)
    loss = quantizer.entropy_loss(lats)
    # Random latents: nearly all codes are equally likely.
    assert -math.log(2**16) < loss < 0


@given(bits=st.integers(1, 16), data=st.data())
def test_tokens_and_codes_round_trip(bits, data):
    quantizer = BinarySphericalQuantizer(2**bits)
    toks = torch.tensor(
        data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1))
    )[None]
    codes = quantizer.toks_to_codes(toks)
    assert torch.equal(quantizer.lats_to_toks(codes), toks)
    assert torch.equal(quantizer.lats_to_codes(codes), codes)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(codes.shape[:-1]))


def test_bit_order_and_zero():
    quantizer = BinarySphericalQuantizer(8)
    lats = torch.tensor([[1.0, 0.0, -1.0], [0.0, -0.0, 1e-9]])
    assert quantizer.lats_to_toks(lats).tolist() == [4, 1]


def test_straight_through():
    quantizer = BinarySphericalQuantizer(8)
    lats = torch.randn(2, 3, 3, requires_grad=True)
    codes = quantizer.straight_through(lats)
    torch.testing.assert_close(codes, quantizer.lats_to_codes(lats))
    (codes * torch.arange(3.0)).sum().backward()
    assert torch.equal(lats.grad, torch.arange(3.0).expand(2, 3, 3))


@pytest.mark.parametrize("size", [0, 1, 3, 100])
def test_codebook_size_must_be_a_power_of_two(size):
    with pytest.raises(ValueError, match="power of two"):
        BinarySphericalQuantizer(size)
