"""Options that trade exactness for speed; off by default.

What each gains and costs is measured by ``benchmarks/speed.py`` and written
in the README. A codec that was accelerated is for inference alone.
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
    codec: Codec,
    precision: Precision | None = None,
    compile: bool = False,
) -> Codec:
    """Make a codec faster, in place.

    ``bf16`` computes the products of matrices in bfloat16 and all else in
    float32; on CUDA by autocast. It pays on processors with instructions for
    it (AMX, AVX512-BF16) and on recent GPUs. ``int8`` is for the CPU: linear
    layers and most convolutions have 8-bit weights, one scale an output, and
    their input is brought to 8 bits as it comes, one scale a frame; what a
    frame gives does not depend on its batch. WavLM's convolutions, the wide
    and the depthwise ones stay as they are. It pays on processors with VNNI or
    AMX; elsewhere the same numbers are computed in float32.
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
    device = codec.device
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
        for role in {"encoder", "decoder"}.intersection(codec.parts):
            codec.get_submodule(role).compile()
    done = [precision] * (precision is not None) + ["compile"] * compile
    codec.accelerated = "+".join(map(str, done))
    return codec


def _to_bfloat16(codec: Stages) -> None:
    """Put the weights of products into bfloat16."""
    for module in codec.modules():
        if isinstance(module, UpScale):
            module.upscale.bfloat16()
        elif isinstance(module, Linear | PointwiseConv) or (
            isinstance(module, StridedConv) and module.groups == 1
        ):
            module.bfloat16()


def _to_int8(codec: Stages) -> None:
    """Put quantized layers in place of those that are products of matrices.

    WavLM's strided convolutions stay: they are what hears the signal.
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
    """Linear layer with 8-bit weights and, as it comes, 8-bit input.

    Both are symmetric, with one scale an output and one scale a frame: what
    a frame gives does not depend on its neighbours.

    Arguments
    ---------
    weight : torch.Tensor
        [out, in].
    bias : torch.Tensor, optional
        [out].

    Example
    -------
    >>> layer = RowwiseInt8(torch.eye(4), torch.zeros(4))
    >>> layer(torch.tensor([[1.0, 0.5, 0.0, -0.25]])).round(decimals=1)
    tensor([[ 1.0000,  0.5000,  0.0000, -0.3000]])
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
        given = torch.zeros_like(self.scale)
        if bias is not None:
            given.copy_(bias.detach())
        # A buffer, which follows the model to another type: the output's.
        self.register_buffer("bias", given, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Arguments
        ---------
        x : torch.Tensor
            Frames [..., in].

        Returns
        -------
        torch.Tensor
            Frames [..., out].
        """
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
            # The same numbers: products of integers are exact in float32.
            y = nn.functional.linear(rows, self.weight.float()) * self.scale
        y = self.bias.float().addcmul(y, scale).to(self.bias.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def then_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply and apply GELU.

        Arguments
        ---------
        x : torch.Tensor
            Frames [..., in].

        Returns
        -------
        torch.Tensor
            Frames [..., out].
        """
        return nn.functional.gelu(self(x))


@functools.cache
def multiplies_int8() -> bool:
    """Whether this processor's products of 8-bit integers can be had, exactly.

    oneDNN's, which torch.compile takes too and PyTorch has no public name for.
    Where they are missing the same is computed in float32, and also where the
    processor has no instructions for them (VNNI, AMX): with AVX2 alone oneDNN
    adds in 16 bits, which overflow.

    Returns
    -------
    bool
        Whether they are.

    Example
    -------
    >>> isinstance(multiplies_int8(), bool)
    True
    """
    if not torch.backends.mkldnn.is_available() or not all(
        hasattr(torch.ops.onednn, name)
        for name in ("qlinear_pointwise", "qlinear_prepack")
    ):
        return False
    # The largest sums that there can be.
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
    """What one step of 8 bits is in each row [M, 1]."""
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    return largest.div_(127).clamp_(min=1e-12)
