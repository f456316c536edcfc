"""Which precision a processor can train in."""

import logging

import pytest
import speechbrain as sb
import torch

from speechbrain_focalcodec.training import precision

OPTIONS = {"device": "cpu", "precision": "bf16", "eval_precision": "bf16"}


def products(brain):
    """Types of products in training and in validation."""
    x = torch.ones(2, 2)
    types = []
    for context in (brain.training_ctx, brain.evaluation_ctx):
        with context:
            types.append((x @ x).dtype)
    return types


def test_emulated_bf16_becomes_float32(monkeypatch, caplog):
    monkeypatch.setattr(precision, "emulates_bf16", lambda: True)
    brain = sb.Brain(run_opts=OPTIONS)
    assert products(brain) == [torch.bfloat16] * 2
    with caplog.at_level(logging.WARNING):
        precision.avoid_emulation(brain)
    assert products(brain) == [torch.float32] * 2
    assert (brain.precision, brain.eval_precision) == ("fp32", "fp32")
    assert "eval_precision: this processor would emulate bf16" in caplog.text


def test_bf16_is_kept_if_supported(even_if_emulated):
    brain = sb.Brain(run_opts=OPTIONS)
    precision.avoid_emulation(brain)
    assert products(brain) == [torch.bfloat16] * 2


@pytest.mark.parametrize("native", [True, False])
def test_bf16_support_is_read_from_pytorch(monkeypatch, native):
    name = "_is_mkldnn_bf16_supported"
    monkeypatch.setattr(torch.ops.mkldnn, name, lambda: native, raising=False)
    assert precision.emulates_bf16() is not native
