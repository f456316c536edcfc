"""Lossless entropy coding of tokens, without a trained model.

A token's bits are the signs of its code. A logistic regression per bit predicts
it from the bits of the last four tokens, from the last token as a whole, and
from the higher bits of the same token. It learns after each token, in the
encoder and in the decoder alike, so a file needs no other data. All computation
is in integers, so each machine has the same result. A range coder (the library
constriction) turns predictions into bytes.
"""

import functools
import math
from typing import Any

import numpy as np

from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["code_tokens", "least_code_bits", "restore_tokens"]

# Changing any of these changes the format: increase the version.
_HISTORY = 4  # tokens before
_ROW_BITS = 13  # bits of the previous token that select a row
_ONE = 36  # weights and logits are multiples of 2**-36
_STEPS = 8  # a logit is rounded down to 2**-8 for its probability
_LIMIT = 6 << _STEPS  # the largest logit: each bit has a cost
_PROB = 16  # probabilities are multiples of 2**-16
# The learning rate of weights is 0.015 / 4 / sqrt(1 + t / 600). _RATE is its
# square at t = 0, in units of 2**(36 - 16), times 600.
_AGE = 600
_RATE = 3932**2 * _AGE
_ROW_RATE = 209715  # 0.2 * 2**(36 - 16), constant
_STICKY = 20615843021  # 0.3 * 2**36: a bit is likely to stay the same

_BLOCK = 2**12  # tokens per call of the range coder


def code_tokens(toks: np.ndarray, bits: int) -> bytes:
    """Code tokens, int64 [N], each below ``2**bits`` (1..32 bits).

    The length of the code is a multiple of 4 bytes; it may exceed that of plain
    tokens. Raises ImportError if constriction is not installed.
    """
    stream = import_extra("constriction", "entropy").stream
    coder = stream.queue.RangeEncoder()
    family = stream.model.Bernoulli(perfect=False)
    probs = _probabilities()
    predictor = _Predictor(bits)
    for start in range(0, len(toks), _BLOCK):
        block = toks[start : start + _BLOCK, None]
        planes = (block >> predictor.shifts) & 1
        chosen = np.empty(planes.shape, np.int64)
        for i, signs in enumerate(2 * planes - 1):
            logits = predictor.logits() + predictor.own @ signs
            chosen[i] = _to_index(logits)
            predictor.learn(signs, probs[chosen[i]])
        coder.encode(
            planes.ravel().astype(np.int32),
            family,
            probs[chosen.ravel()] / 2**_PROB,
        )
    return coder.get_compressed().astype("<u4").tobytes()


def restore_tokens(data: bytes, num_tokens: int, bits: int) -> np.ndarray:
    """Decode `num_tokens` tokens of :func:`code_tokens`, int64 [N].

    Damaged code decodes to other tokens or raises ValueError: only a checksum
    detects damage. Raises ImportError if constriction is not installed.
    """
    stream = import_extra("constriction", "entropy").stream
    if len(data) % 4:
        raise ValueError("the code is no multiple of 4 bytes")
    coder = stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype("u4"))
    probs = _probabilities()
    models = _models()
    predictor = _Predictor(bits)
    own = predictor.own
    toks = np.empty(num_tokens, np.int64)
    signs = np.empty(bits, np.int64)
    indices = np.empty(bits, np.int64)
    for t in range(num_tokens):
        logits = predictor.logits()
        tok = 0
        for i in range(bits):
            index = (logits.item(i) >> (_ONE - _STEPS)) + _LIMIT
            index = min(max(index, 0), 2 * _LIMIT)
            try:
                bit = coder.decode(models[index])
            except AssertionError as error:
                raise ValueError("the code is impossible") from error
            indices[i] = index
            tok = 2 * tok + bit
            if bit:
                signs[i] = 1
                logits += own[:, i]
            else:
                signs[i] = -1
                logits -= own[:, i]
        toks[t] = tok
        predictor.learn(signs, probs[indices])
    if not coder.maybe_exhausted():
        raise ValueError("the code continues after the last token")
    return toks


def least_code_bits(num_tokens: int, bits: int) -> int:
    """Lower bound on the code's length in bits, to bound a reader's work."""
    likeliest = int(_probabilities()[-1]) / 2**_PROB
    # One word less, for the coder's rounding; but at least one.
    return max(32, int(-math.log2(likeliest) * num_tokens * bits) - 32)


@functools.cache
def _probabilities() -> np.ndarray:
    """The logistic function of each possible logit: int64 [K]."""
    # No value is near the middle of two integers (see the tests), so all
    # machines round alike.
    return np.array(
        [
            round(2**_PROB / (1 + math.exp(-i / 2**_STEPS)))
            for i in range(-_LIMIT, _LIMIT + 1)
        ]
    )


@functools.cache
def _models() -> list[Any]:
    """The range coder's model of each probability."""
    model = import_extra("constriction", "entropy").stream.model
    return [
        model.Bernoulli(prob / 2**_PROB, perfect=False)
        for prob in _probabilities().tolist()
    ]


def _to_index(logits: np.ndarray) -> np.ndarray:
    """Indices of the probabilities of logits."""
    steps = logits >> (_ONE - _STEPS)
    return np.clip(steps + _LIMIT, 0, 2 * _LIMIT)


class _Predictor:
    """Predicts the bits of the next token, in int64.

    Nothing overflows within 2**24 tokens: the learning rate bounds each weight
    by 2**47, and their sum by 2**56; rows are bounded by 2**58.
    """

    def __init__(self, bits: int) -> None:
        self.shifts = np.arange(bits - 1, -1, -1)
        # Inputs: a constant, the previous token (doubled), and earlier ones.
        self.known = np.zeros(1 + _HISTORY * bits, np.int64)
        self.known[0] = 2
        self.weights = np.zeros((bits, len(self.known)), np.int64)
        np.fill_diagonal(self.weights[:, 1:], _STICKY)
        # own[i, j]: weight of bit j for the later bit i.
        self.own = np.zeros((bits, bits), np.int64)
        self.later = np.tri(bits, k=-1, dtype=np.int64)
        self.rows = np.zeros((1 << min(bits, _ROW_BITS), bits), np.int64)
        self.row = self.rows[0]
        self.row_weights = 1 << np.arange(min(bits, _ROW_BITS))[::-1]
        self.bits = bits
        self.age = _AGE

    def logits(self) -> np.ndarray:
        """Logit of each bit from the previous tokens only, int64 [d]."""
        return self.weights @ self.known + self.row

    def learn(self, signs: np.ndarray, probs: np.ndarray) -> None:
        """Update with a token: its bits as -1 or 1, and their probabilities."""
        bits, known = self.bits, self.known
        errors = ((signs + 1) << (_PROB - 1)) - probs
        self.row += _ROW_RATE * errors
        scaled = (math.isqrt(_RATE // self.age) * errors)[:, None]
        self.weights += scaled * known
        self.own += scaled * signs * self.later
        self.age += 1
        known[1 + 2 * bits :] = known[1 + bits : -bits]
        known[1 + bits : 1 + 2 * bits] = known[1 : 1 + bits] >> 1
        known[1 : 1 + bits] = 2 * signs
        top = signs[:_ROW_BITS] > 0
        self.row = self.rows[self.row_weights @ top]
