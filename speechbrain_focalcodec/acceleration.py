"""Options that trade exactness for speed; off by default.

``benchmarks/speed.py`` measures them; the README has the results. An
accelerated codec is for inference only.
"""

import functools
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from speechbrain_focalcodec.modules.derived import Derived
from speechbrain_focalcodec.modules.extractor import FeatureExtractor
from speechbrain_focalcodec.modules.layouts import (
    Linear,
    PointwiseConv,
    StridedConv,
)
from speechbrain_focalcodec.modules.scaling import UpScale
from speechbrain_focalcodec.stages import Stages

__all__ = ["PRECISIONS", "Precision", "accelerate"]

Precision = Literal["bf16", "int8"]
PRECISIONS = get_args(Precision)
Codec = TypeVar("Codec", bound=Stages)


def accelerate(
    codec: Codec, precision: Precision | None = None, compile: bool = False
) -> Codec:
    """Make a codec faster, in place.

    ``bf16`` computes matrix products in bfloat16 and the rest in float32; on
    CUDA by autocast. It is faster on processors with bfloat16 instructions
    (AMX, AVX512-BF16) and recent GPUs. ``int8`` is for the CPU: linear layers
    and most convolutions have 8-bit weights with one scale per output, and
    8-bit input with one scale per frame, so the output does not depend on the
    batch. WavLM's, wide and depthwise convolutions stay exact. It is faster on
    processors with VNNI or AMX; on others the same result is computed in
    float32. ``compile`` compiles encoder and decoder for each new length, so it
    helps if lengths repeat.

    Arguments
    ---------
    codec : FocalCodec
        The model, on its final device. Set to eval mode; its fingerprint stays
        that of the exact model.
    precision : str, optional
        ``bf16`` or ``int8``; exact if None.
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
        If an option is unknown or not available on the codec's device, or
        the codec was accelerated before.
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
    device = codec.device
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"precision int8 is for the CPU, not {device}")
    if precision is None and not compile:
        return codec
    codec.freeze_fingerprint()
    codec.eval()
    if precision == "bf16" and device.type != "cpu":
        codec.autocast_dtype = torch.bfloat16
    elif precision == "bf16":
        _to_bfloat16(codec)
    elif precision == "int8":
        _to_int8(codec)
    if compile:
        for role in {"encoder", "decoder"}.intersection(codec.parts):
            codec.get_submodule(role).compile()
    done = [precision] * (precision is not None) + ["compile"] * compile
    codec.accelerated = "+".join(map(str, done))
    return codec


def _to_bfloat16(codec: Stages) -> None:
    """Convert the weights of matrix products to bfloat16."""
    for module in codec.modules():
        if isinstance(module, UpScale):
            module.upscale.bfloat16()
        elif isinstance(module, Linear | PointwiseConv) or (
            isinstance(module, StridedConv) and module.groups == 1
        ):
            module.bfloat16()


def _to_int8(codec: Stages) -> None:
    """Replace linear layers, and convolutions that are matrix products.

    WavLM's strided convolutions, which read the waveform, stay exact.
    """
    extractors = [
        part
        for module in codec.modules()
        if isinstance(module, FeatureExtractor)
        for part in module.modules()
    ]
    for module in list(codec.modules()):
        for name, child in module.named_children():
            if isinstance(child, Linear):
                quantized = RowwiseInt8(child.weight, child.bias)
                setattr(module, name, quantized)
            elif isinstance(child, PointwiseConv | UpScale) or (
                isinstance(child, StridedConv)
                and child.groups == 1
                and child not in extractors
            ):
                child.quantized = RowwiseInt8(child.as_matrix(), child.bias)


class RowwiseInt8(nn.Module):
    """Linear layer with 8-bit weights [out, in] and dynamic 8-bit input.

    Quantization is symmetric, with one scale per output and per frame, so a
    frame's output does not depend on other frames.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        weight = weight.detach().float().contiguous()
        self.out_features = len(weight)
        scale = _scale(weight)
        self.weight = (weight / scale).round_().to(torch.int8)
        self.packed = Derived(_pack_int8)
        self.scale = scale[:, 0]
        self.zero_points = torch.zeros_like(self.scale, dtype=torch.int64)
        self.exact = multiplies_int8()
        self.bias: torch.Tensor
        values = torch.zeros_like(self.scale)
        if bias is not None:
            values.copy_(bias.detach())
        # A buffer: its dtype, which is that of the output, follows the model.
        self.register_buffer("bias", values, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [..., in] to frames [..., out]."""
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = _scale(rows)
        rows = (rows / scale).round_()
        if self.exact:
            y = _multiply_int8(
                rows.to(torch.int8),
                self.packed(self.weight),
                self.scale,
                self.zero_points,
            )
        else:
            # The same result: products of integers are exact in float32.
            y = nn.functional.linear(rows, self.weight.float()) * self.scale
        y = self.bias.float().addcmul(y, scale).to(self.bias.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def then_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Linear layer followed by GELU."""
        return nn.functional.gelu(self(x))


@functools.cache
def multiplies_int8() -> bool:
    """Whether oneDNN multiplies 8-bit integers exactly on this processor.

    torch.compile uses the same operators; PyTorch has no public name for them.
    With AVX2 alone, oneDNN adds in 16 bits, which overflow.
    """
    if not torch.backends.mkldnn.is_available() or not all(
        hasattr(torch.ops.onednn, name)
        for name in ("qlinear_pointwise", "qlinear_prepack")
    ):
        return False
    # The largest possible sums.
    rows = torch.full((2, 64), 127, dtype=torch.int8)
    zeros = torch.zeros(2, dtype=torch.int64)
    try:
        found = _multiply_int8(rows, _pack_int8(rows), torch.ones(2), zeros)
    except RuntimeError:
        return False
    return bool((found == 64 * 127**2).all())


def _multiply_int8(
    rows: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_points: torch.Tensor,
) -> torch.Tensor:
    """Rows int8 [M, in] by packed weights [out, in], times scales [out]."""
    return torch.ops.onednn.qlinear_pointwise(
        rows,
        1.0,
        0,
        packed,
        scale,
        zero_points,
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )


def _pack_int8(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.onednn.qlinear_prepack(weight, None)


def _scale(rows: torch.Tensor) -> torch.Tensor:
    """Quantization step of each row [M, 1]."""
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    return largest.div_(127).clamp_(min=1e-12)
