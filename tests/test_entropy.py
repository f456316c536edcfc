"""Entropy coding: exact, the same everywhere, and worth its while."""

import hashlib
import math
import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.tokens import entropy
from speechbrain_focalcodec.tokens.entropy import (
    code_tokens,
    least_code_bits,
    restore_tokens,
)


def walk(number, bits=13, seed=0):
    """Tokens whose bits change now and then, as those of speech do."""
    # Python promises these numbers for good, NumPy does not.
    generator = random.Random(seed)
    flips = [generator.random() < 0.33 for _ in range(number * bits)]
    flips = np.reshape(flips, (number, bits))
    planes = np.cumsum(flips, axis=0) % 2
    return planes @ (1 << np.arange(bits))


@settings(max_examples=150)
@given(
    bits=st.integers(1, 32),
    toks=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    repeats=st.integers(1, 4),
)
def test_tokens_come_back(bits, toks, repeats):
    toks = np.array(toks * repeats, dtype=np.int64) % 2**bits
    data = code_tokens(toks, bits)
    assert np.array_equal(restore_tokens(data, len(toks), bits), toks)
    assert 8 * len(data) >= least_code_bits(len(toks), bits)


def test_many_blocks_come_back():
    toks = walk(2 * 4096 + 77)
    data = code_tokens(toks, 13)
    assert np.array_equal(restore_tokens(data, len(toks), 13), toks)
    # The entropy of the flips, and the cost of learning.
    ideal = 13 * -(0.33 * math.log2(0.33) + 0.67 * math.log2(0.67))
    assert ideal < 8 * len(data) / len(toks) < ideal + 0.3


@pytest.mark.parametrize("bits", [1, 13, 32])
def test_no_code_is_shorter_than_the_bound(bits):
    toks = np.full(3000, 2**bits - 1)
    data = code_tokens(toks, bits)
    least = least_code_bits(len(toks), bits)
    assert least <= 8 * len(data) < 1.5 * least + 1000
    assert np.array_equal(restore_tokens(data, len(toks), bits), toks)


def test_noise_costs_little():
    toks = np.random.default_rng(0).integers(0, 8192, 3000)
    assert 8 * len(code_tokens(toks, 13)) < 13.5 * 3000


def test_the_code_is_frozen():
    # Files of any release, machine and version of constriction.
    digest = hashlib.sha256(code_tokens(walk(5000), 13)).hexdigest()
    assert digest == (
        "1d00daeb778323e5947e3862ab90284257a600462e06362d2860e4f5c12aaf42"
    )
    assert code_tokens(np.array([5, 6, 7, 7, 7]), 3).hex() == "5d7e40bb"


def test_probabilities_are_not_near_a_rounding_edge():
    limit = entropy._LIMIT
    exact = [2**16 / (1 + math.exp(-i / 256)) for i in range(-limit, limit + 1)]
    table = entropy._probabilities()
    assert [round(x) for x in exact] == table.tolist()
    assert min(abs(x % 1 - 0.5) for x in exact) > 1e-6
    assert 0 < table[0] and table[-1] < 2**16
    assert np.array_equal(table + table[::-1], np.full(len(table), 2**16))


def test_the_predictor_stays_in_integers():
    predictor = entropy._Predictor(13)
    signs = np.ones(13, np.int64)
    for _ in range(100):
        predictor.learn(signs, np.full(13, 30000))
    for value in vars(predictor).values():
        if isinstance(value, np.ndarray):
            assert value.dtype == np.int64
    assert isinstance(predictor.age, int)


def test_no_sum_overflows():
    # The bounds that _Predictor claims, at the largest number of tokens.
    tokens, error = 2**24, 2**16
    rates = 2 * 3932 * math.sqrt(600) * (math.sqrt(tokens + 600) + 1)
    weight = rates * error * 2 + entropy._STICKY
    row = entropy._ROW_RATE * error * tokens
    features = 2 * (1 + 5 * 32)
    assert weight < 2**47
    assert weight * features + row < 2**62


@settings(max_examples=100)
@given(data=st.binary(max_size=60), number=st.integers(1, 200))
def test_any_bytes_are_tokens_or_the_error(data, number):
    try:
        toks = restore_tokens(data, number, 13)
    except ValueError:
        return
    assert toks.shape == (number,)
    assert 0 <= toks.min() and toks.max() < 2**13


def test_bytes_left_over_are_refused():
    data = code_tokens(walk(100), 13)
    with pytest.raises(ValueError, match="continues after the last token"):
        restore_tokens(data + bytes([1] * 64), 100, 13)
    with pytest.raises(ValueError, match="multiple of 4"):
        restore_tokens(data + b"\0", 100, 13)


def test_the_library_is_named_when_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    for call in (
        lambda: code_tokens(walk(5), 13),
        lambda: restore_tokens(bytes(8), 5, 13),
    ):
        with pytest.raises(ImportError, match=r"\[entropy\]"):
            call()
