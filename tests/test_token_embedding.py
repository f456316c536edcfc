"""The embedding that starts from the codes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_focalcodec.modules.bsq import BinarySphericalQuantizer
from speechbrain_focalcodec.modules.token_embedding import TokenEmbedding

KINDS = [
    {},
    {"freeze": True},
    {"tied_to_codes": True},
    {"freeze": True, "tied_to_codes": True},
]


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_codes(kind):
    embedding = TokenEmbedding(2048, 11, **kind)
    toks = torch.arange(2048).reshape(2, -1)
    codes = BinarySphericalQuantizer(2048).toks_to_codes(toks)
    torch.testing.assert_close(embedding(toks), codes)
    torch.testing.assert_close(embedding.weight, codes.flatten(0, 1))


@given(
    bits=st.integers(1, 10),
    dim=st.integers(1, 24),
    scale=st.sampled_from([1.0, 4.0]),
    kind=st.sampled_from(KINDS),
)
def test_projection_keeps_lengths_and_angles(bits, dim, scale, kind):
    embedding = TokenEmbedding(2**bits, dim, scale=scale, **kind)
    weight = embedding.weight.detach()
    square = weight.square().sum(1).mean()
    torch.testing.assert_close(square, torch.tensor(scale**2))
    if dim >= bits:
        quantizer = BinarySphericalQuantizer(2**bits)
        codes = quantizer.toks_to_codes(torch.arange(2**bits))
        torch.testing.assert_close(
            weight @ weight.T / scale**2, codes @ codes.T, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_after_the_codebook(kind):
    embedding = TokenEmbedding(64, 16, 3, padding_idx=66, **kind)
    assert embedding.num_embeddings == 67 == len(embedding.weight)
    toks = torch.tensor([[64, 65, 66], [0, 63, 64]])
    vectors = embedding(toks)
    torch.testing.assert_close(vectors, embedding.weight[toks])
    assert vectors[0, 2].eq(0).all()
    assert vectors[0, 0].ne(vectors[0, 1]).all()
    for tok in (67, 68, -1, -70):
        with pytest.raises(IndexError):
            embedding(torch.tensor([tok]))


@pytest.mark.parametrize("kind", KINDS)
def test_no_special_tokens(kind):
    embedding = TokenEmbedding(64, 16, **kind)
    assert embedding(torch.tensor([63])).shape == (1, 16)
    with pytest.raises(IndexError):
        embedding(torch.tensor([64]))


@pytest.mark.parametrize("kind", KINDS)
def test_trained_parameters(kind):
    embedding = TokenEmbedding(64, 16, 2, padding_idx=65, **kind)
    toks = torch.tensor([[64, 7, 65], [0, 63, 64]])
    before = embedding.weight.detach().clone()
    parameters = [p for p in embedding.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 1.0)
    embedding(toks).square().sum().backward()
    optimizer.step()
    moved = (embedding.weight - before).abs().sum(1) > 0
    assert moved[64] and not moved[65]
    assert moved[[0, 7, 63]].all() != embedding.freeze
    # Tied to codes, one matrix serves all; in a table each is its own.
    others = moved[[1, 2, 3]].all()
    assert others == (embedding.table is None and not embedding.freeze)


def test_only_the_seed_matters():
    state = torch.get_rng_state()
    first = TokenEmbedding(64, 16, 2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(first.weight, TokenEmbedding(64, 16, 2, seed=1).weight)
    other = TokenEmbedding(64, 16, 2, seed=2)
    assert not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_is_complete(kind):
    first = TokenEmbedding(64, 16, 2, seed=1, **kind)
    second = TokenEmbedding(64, 16, 2, seed=2, **kind)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("kind", KINDS[1:3])
def test_large_codebooks_need_no_table(kind):
    embedding = TokenEmbedding(2**24, 512, 4, **kind)
    assert sum(p.numel() for p in embedding.parameters()) == (24 + 4) * 512
    vectors = embedding(torch.tensor([2**24 - 1, 2**24]))
    assert vectors.norm(dim=1)[0].item() == pytest.approx(1, abs=1e-5)


def test_a_table_of_65536_codes():
    embedding = TokenEmbedding(2**16, 64, scale=8.0)
    assert embedding.table.shape == (2**16, 64)
    assert embedding.weight.std().item() == pytest.approx(1, abs=0.01)
    near = embedding.weight[0] @ embedding.weight[1]
    far = embedding.weight[0] @ embedding.weight[2**16 - 1]
    assert near.item() == pytest.approx(64 * 14 / 16, rel=1e-3)
    assert far.item() == pytest.approx(-64, rel=1e-3)


def test_half_precision():
    embedding = TokenEmbedding(64, 16, 2, tied_to_codes=True).bfloat16()
    assert embedding(torch.tensor([3, 64])).dtype == torch.bfloat16
    assert math.isfinite(embedding.weight.sum().item())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"codebook_size": 1000}, "power of two"),
        ({"dim": 0}, "dim must be positive"),
        ({"num_special": -1}, "not negative"),
        ({"padding_idx": 3}, "special token, within 64..65"),
        ({"padding_idx": 66}, "special token"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    defaults = {"codebook_size": 64, "dim": 8, "num_special": 2}
    with pytest.raises(ValueError, match=message):
        TokenEmbedding(**defaults | arguments)
