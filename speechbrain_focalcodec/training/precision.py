"""Precisions that a processor can train in."""

import logging
from typing import Any

import torch
from speechbrain.utils.autocast import TorchAutocast

__all__ = ["avoid_emulation", "emulates_bf16"]

logger = logging.getLogger(__name__)


def emulates_bf16() -> bool:
    """Whether this processor has no products of bfloat16 of its own.

    PyTorch then emulates them, which takes 8 to 30 times as long as in
    float32.

    Returns
    -------
    bool
        Whether it does.

    Example
    -------
    >>> isinstance(emulates_bf16(), bool)
    True
    """
    # PyTorch has no public name for it.
    native = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return native is not None and not native()


def avoid_emulation(brain: Any) -> None:
    """Let a Brain compute in float32 where bfloat16 would be emulated.

    So that one YAML serves processors with AMX and without.

    Arguments
    ---------
    brain : speechbrain.Brain
        Its ``precision`` and ``eval_precision`` are changed, and what follows
        from them, which is said in the log.
    """
    if brain.device_type != "cpu" or not emulates_bf16():
        return
    for name, context in (
        ("precision", "training_ctx"),
        ("eval_precision", "evaluation_ctx"),
    ):
        if getattr(brain, name) == "bf16":
            logger.warning(
                "%s: this processor would emulate bf16, which takes many "
                "times as long; taking fp32",
                name,
            )
            setattr(brain, name, "fp32")
            exact = TorchAutocast(device_type="cpu", dtype=torch.float32)
            setattr(brain, context, exact)
