"""Options that trade exactness for speed; off by default.

What each gains and costs is measured by ``benchmarks/speed.py`` and written
in the README. A codec that was accelerated is for inference alone.
"""

import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from speechbrain_focalcodec.modules.layouts import (
    Linear,
    PointwiseConv,
    StridedConv,
)
from speechbrain_focalcodec.modules.scaling import UpScale

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["PRECISIONS", "Precision", "accelerate"]

Precision = Literal["bf16", "int8"]
PRECISIONS = get_args(Precision)


def accelerate(
    codec: "FocalCodec",
    precision: Precision | None = None,
    compile: bool = False,
) -> "FocalCodec":
    """Make a codec faster, in place.

    ``bf16`` computes the products of matrices in bfloat16 and all else in
    float32; on CUDA by autocast. It pays on processors with instructions for
    it (AMX, AVX512-BF16) and on recent GPUs. ``int8`` is for the CPU: linear
    layers have 8-bit weights, one scale a row, and their input is quantized
    as it comes (PyTorch's dynamic quantization), with one scale for a whole
    batch: what an utterance gives then depends a little on its batch and on
    windows, which only float32 excludes. Convolutions stay as they are.
    ``compile`` has torch.compile make encoder and decoder anew for each length
    it meets, so it pays where lengths repeat.

    Arguments
    ---------
    codec : FocalCodec
        The model, on the device where it is to run. It is changed, and set
        to eval mode; its fingerprint stays that of the exact model.
    precision : str, optional
        ``bf16`` or ``int8``; exact when not given.
    compile : bool
        Whether to compile encoder and decoder; needs a C++ compiler on the
        CPU.

    Returns
    -------
    FocalCodec
        `codec`.

    Raises
    ------
    ValueError
        If an option is not known, cannot be had on the codec's device, or
        the codec was accelerated before.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> toks, _ = accelerate(codec, "bf16").encode(torch.randn(1, 16000))
    """
    if precision not in (None, *PRECISIONS):
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)} or None, got "
            f"{precision!r}"
        )
    if codec.accelerated:
        raise ValueError(
            f"{codec.name} was accelerated before ({codec.accelerated}); "
            "load the model again"
        )
    device = next(codec.parameters()).device
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"precision int8 is for the CPU, not {device}")
    if precision is None and not compile:
        return codec
    codec.keep_fingerprint()
    codec.eval()
    if precision == "bf16" and device.type != "cpu":
        codec.autocast_dtype = torch.bfloat16
    elif precision == "bf16":
        _to_bfloat16(codec)
    elif precision == "int8":
        _to_int8(codec)
    if compile:
        for part in (codec.encoder, codec.decoder):
            part.compile()
    done = [precision] * (precision is not None) + ["compile"] * compile
    codec.accelerated = "+".join(map(str, done))
    return codec


def _to_bfloat16(codec: "FocalCodec") -> None:
    """Put the weights of products into bfloat16."""
    for module in codec.modules():
        if isinstance(module, UpScale):
            module.upscale.bfloat16()
        elif isinstance(module, Linear | PointwiseConv) or (
            isinstance(module, StridedConv) and module.groups == 1
        ):
            module.bfloat16()


def _to_int8(codec: "FocalCodec") -> None:
    """Put dynamically quantized layers in place of the linear ones."""
    from torch.ao import quantization

    engines = torch.backends.quantized.supported_engines
    if "onednn" in engines and torch.backends.quantized.engine == "x86":
        # The same numbers as x86, with the fastest instructions there are.
        torch.backends.quantized.engine = "onednn"
    with warnings.catch_warnings():
        # Deprecated in favour of torchao, which is slower without compiling.
        warnings.simplefilter("ignore")
        quantization.quantize_dynamic(
            codec,
            {Linear: quantization.per_channel_dynamic_qconfig},
            mapping={Linear: _DynamicLinear},
            inplace=True,
        )


class _DynamicLinear(torch.ao.nn.quantized.dynamic.Linear):
    """PyTorch's layer, from ours."""

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False):
        """Quantize a linear layer."""
        plain = nn.Linear(mod.in_features, mod.out_features)
        plain.weight, plain.bias = mod.weight, mod.bias
        plain.qconfig = mod.qconfig
        quantized = torch.ao.nn.quantized.dynamic.Linear.from_float(plain)
        quantized.__class__ = cls
        return quantized

    def then_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply and apply GELU."""
        return nn.functional.gelu(self(x))
