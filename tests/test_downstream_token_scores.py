"""Output layers of language models: softmax, and mixtures of bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_focalcodec.downstream.token_scores import (
    CodeMixture,
    TokenSoftmax,
)

DIM = 8


def mixture(codebook_size, components, scale=2.0):
    torch.manual_seed(0)
    head = CodeMixture(DIM, codebook_size, components)
    with torch.no_grad():
        head.output.weight.mul_(scale)
    return head


@given(
    bits=st.integers(1, 9),
    components=st.integers(1, 5),
    count=st.integers(1, 6),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
)
@torch.no_grad()
def test_probabilities_of_all_classes(bits, components, count, scale):
    head = mixture(2**bits, components, scale)
    scores = head(torch.randn(count, DIM))
    found = scores.log_probs()
    assert found.shape == (count, 2**bits + 1)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(count))
    # Single targets equal the full distribution.
    for target in {0, 2**bits - 1, 2**bits}:
        each = scores.log_prob(torch.full((count,), target))
        torch.testing.assert_close(each, found[:, target], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mixture_of_known_values():
    """Two components of two bits: token 2 is the bits 1, 0."""
    head = CodeMixture(1, 4, 2)
    head.output.weight.zero_()
    odds = torch.tensor([0.25, 3.0, 1.0, 4.0, 1.0, 1.0, 9.0])
    head.output.bias.copy_(odds.log())
    scores = head(torch.zeros(1, 1))
    first, second = 0.75 * (4 / 5 * 1 / 2), 0.25 * (1 / 2 * 1 / 10)
    wanted = 0.8 * (first + second)
    found = scores.log_prob(torch.tensor([2])).exp().item()
    assert found == pytest.approx(wanted, rel=1e-5)
    assert scores.log_probs()[0, 4].exp() == pytest.approx(0.2, rel=1e-5)


@torch.no_grad()
def test_the_likeliest():
    scores = mixture(16, 1)(torch.randn(50, DIM))
    assert scores.likeliest().equal(scores.log_probs().argmax(1))
    # With several components: likelier than each component's likeliest.
    scores = mixture(16, 3)(torch.randn(50, DIM))
    found = scores.log_prob(scores.likeliest())
    own = scores.quantizer.lats_to_toks(scores.bits)
    for component in range(3):
        assert (found >= scores.log_prob(own[:, component]) - 1e-6).all()
    scores.end.fill_(9.0)
    assert scores.likeliest().eq(16).all()


def test_a_mixture_learns_what_independent_bits_cannot():
    """All bits are the same: half of the tokens 0, half 15."""
    targets = torch.tensor([0, 15]).repeat(20)
    losses = {}
    for components in (1, 4):
        head = mixture(16, components)
        optimizer = torch.optim.Adam(head.parameters(), 0.1)
        for _ in range(150):
            loss = -head(torch.ones(40, DIM)).log_prob(targets).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[components] = loss.item()
    assert losses[1] == pytest.approx(4 * 0.6931, abs=0.05)
    assert losses[4] == pytest.approx(0.6931, abs=0.05)


@torch.no_grad()
def test_softmax():
    scores = TokenSoftmax(DIM, 16)(torch.randn(5, DIM))
    found = scores.log_probs()
    torch.testing.assert_close(found, scores.logits.log_softmax(1))
    assert scores.likeliest().equal(found.argmax(1))
    targets = torch.arange(12, 17)
    each = found.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(scores.log_prob(targets), each)


def test_zero_components_are_refused():
    with pytest.raises(ValueError, match="components must be positive, got 0"):
        CodeMixture(DIM, 16, 0)
