"""Avoids precisions that the CPU would emulate."""

import logging
from typing import Any

import torch
from speechbrain.utils.autocast import TorchAutocast

__all__ = ["avoid_emulation", "emulates_bf16"]

logger = logging.getLogger(__name__)


def emulates_bf16() -> bool:
    """Whether this CPU has no bfloat16 products.

    PyTorch then emulates them, 8 to 30 times slower than float32.
    """
    # PyTorch has no public name for it.
    native = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return native is not None and not native()


def avoid_emulation(brain: Any) -> None:
    """Set a Brain's precision to float32 if the CPU would emulate bfloat16."""
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
