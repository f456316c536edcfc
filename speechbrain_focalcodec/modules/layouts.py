"""Convolutions over [B, T, C] in the fastest layouts.

Frames stay contiguous from layer to layer and nothing is transposed:
convolutions become matrix products.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.derived import Derived, can_keep, fast_path

__all__ = [
    "Linear",
    "PointwiseConv",
    "StridedConv",
    "WideConv",
    "depthwise_conv",
    "pack",
    "pack_depthwise",
    "packed_product",
    "use_packed",
    "then_gelu",
]


# oneDNN multiplies by weights in its own layout, a sixth faster if weights are
# larger than frames. PyTorch has no public names for it; they may be missing.
PACKED = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name)
    for name in (
        "_convolution_pointwise",
        "_linear_pointwise",
        "_reorder_convolution_weight",
        "_reorder_linear_weight",
    )
)
# Numbers of frames for which it is faster, by type; see docs/speed.md.
PACKED_FRAMES = {torch.float32: range(1, 641)}
if (
    PACKED
    and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
):
    PACKED_FRAMES[torch.bfloat16] = range(1, 1 << 62)
# For smaller weights, finding oneDNN's kernel takes longer than the product.
PACKED_SIZE = 1 << 19
# Up to this many steps, a convolution is one such product of copied rows.
MAX_COPIED_STEPS = 64


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A linear layer's contiguous weight [out, in] in oneDNN's layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def use_packed(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a packed weight can be used for frames `x`, and is faster."""
    frames = PACKED_FRAMES.get(x.dtype, range(0))
    return (
        PACKED
        and weight.numel() >= PACKED_SIZE
        and fast_path(x)
        and x.numel() // x.shape[-1] in frames
        and can_keep(weight)
    )


def packed_product(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str = "none",
) -> torch.Tensor:
    """Multiply frames [..., in] by a packed weight; returns [..., out].

    `activation` is ``none`` or ``gelu``.
    """
    return torch.ops.mkldnn._linear_pointwise(
        x, packed, bias, activation, [], "none"
    )


class Linear(nn.Linear):
    """Linear layer that casts its input to the type of its weight.

    With bfloat16 weights and float32 elsewhere, only the products are in low
    precision: see :mod:`speechbrain_focalcodec.acceleration`.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.packed = Derived(pack)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [..., in_features] to frames [..., out_features]."""
        return self._multiply(x, "none")

    def then_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Linear layer and GELU, fused if possible."""
        return self._multiply(x, "gelu")

    def _multiply(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        x = x.to(self.weight.dtype)
        if use_packed(x, self.weight):
            return packed_product(
                x, self.packed(self.weight), self.bias, activation
            )
        y = F.linear(x, self.weight, self.bias)
        return y if activation == "none" else F.gelu(y)


def then_gelu(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer and GELU, fused if the layer can.

    Layers that replace a :class:`Linear` (adapters, LoRA) cannot.
    """
    joined = getattr(layer, "then_gelu", None)
    return F.gelu(layer(x)) if joined is None else joined(x)


def _pack_first_tap(weight: torch.Tensor) -> torch.Tensor:
    return pack(weight[..., 0].contiguous())


class PointwiseConv(nn.Conv1d):
    """Convolution of one tap over [B, T, C]: a linear layer."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, 1)
        self.packed = Derived(_pack_first_tap)
        # A layer in 8 bits to use instead: see acceleration.py.
        self.quantized: nn.Module | None = None

    def as_matrix(self) -> torch.Tensor:
        """Weight [out, in] of the same linear layer."""
        return self.weight[..., 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [B, T, in_dim] to frames [B, T, out_dim]."""
        if self.quantized is not None:
            return self.quantized(x)
        x = x.to(self.weight.dtype)
        if use_packed(x, self.weight):
            return packed_product(x, self.packed(self.weight), self.bias)
        return F.linear(x, self.as_matrix(), self.bias)


def pack_depthwise(weight: torch.Tensor) -> torch.Tensor:
    """Taps [C, 1, K] of a depthwise convolution in oneDNN's layout."""
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight.unsqueeze(2), [0, 0], [1, 1], [1, 1], len(weight)
    )


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: int = 0,
    packed: Derived | None = None,
) -> torch.Tensor:
    """Depthwise convolution of frames [B, T, C] with taps [C, 1, K] and bias
    [C].

    It runs as an image of height 1 with channels last. `padding` zeros are
    added on both sides: the output is [B, T + 2 * padding - K + 1, C]. `packed`
    caches :func:`pack_depthwise` of the weight: faster for hundreds of taps and
    few steps, for which oneDNN otherwise reorders the weight in each call.
    """
    dtype = weight.dtype
    if x.device.type == "cpu":
        # oneDNN hangs with half types and more than 14 taps.
        half = dtype in (torch.bfloat16, torch.float16)
        if half or torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return depthwise_conv(
                    x.float(),
                    weight.float(),
                    None if bias is None else bias.float(),
                    padding,
                ).to(dtype)
    x = x.to(dtype)
    # The fast kernel needs channels side by side.
    image = x.contiguous().transpose(1, 2).unsqueeze(2)
    if packed is not None and use_packed(x, weight):
        y = torch.ops.mkldnn._convolution_pointwise(
            image,
            packed(weight),
            bias,
            [0, padding],
            [1, 1],
            [1, 1],
            weight.shape[0],
            "none",
            [],
            "",
        )
        return y.squeeze(2).transpose(1, 2)
    y = F.conv2d(
        image,
        weight.unsqueeze(2),
        bias,
        padding=(0, padding),
        groups=weight.shape[0],
    )
    return y.squeeze(2).transpose(1, 2)


def _as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """[out, in, K] to [K * in, out]: one row per tap and input channel."""
    return weight.permute(2, 1, 0).flatten(0, 1).contiguous()


def _pack_as_matrix(weight: torch.Tensor) -> torch.Tensor:
    return pack(_as_matrix(weight).mT.contiguous())


class StridedConv(nn.Conv1d):
    """Convolution without padding over [B, T, C].

    On the CPU, `stride` adjacent steps are the rows of a matrix, so a kernel of
    K taps takes ceil(K / stride) products and no copy. More than one group has
    no fast path.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int,
        stride: int = 1,
        bias: bool = True,
        groups: int = 1,
    ):
        super().__init__(
            in_dim, out_dim, kernel_size, stride, bias=bias, groups=groups
        )
        self.matrix = Derived(_as_matrix)
        self.packed = Derived(_pack_as_matrix)
        # A layer in 8 bits to use instead: see acceleration.py.
        self.quantized: nn.Module | None = None

    def as_matrix(self) -> torch.Tensor:
        """Weight [out, K * in] of the linear layer over all taps."""
        return _as_matrix(self.weight).mT

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Steps [B, T, in_dim] to [B, (T - K) // stride + 1, out_dim].

        K is the kernel size; T >= K.
        """
        if self.quantized is not None:
            return self.quantized(self._rows(x))
        x = x.to(self.weight.dtype)
        if not fast_path(x) or self.groups > 1:
            return super().forward(x.mT).mT
        x = x.contiguous()
        batch, steps, width = x.shape
        taps, stride = self.kernel_size[0], self.stride[0]
        count = (steps - taps) // stride + 1
        if (
            width > 1
            and batch * count <= MAX_COPIED_STEPS
            and use_packed(x, self.weight)
        ):
            return packed_product(
                self._rows(x), self.packed(self.weight), self.bias
            )
        matrix = self.matrix(self.weight)
        if width == 1:
            # Rows of few samples: one copy is faster than small products.
            rows = x[..., 0].unfold(1, taps, stride)
            return F.linear(rows, matrix.mT, self.bias)
        y = x.new_empty(batch, count, self.out_channels)
        for item in range(batch):
            for tap in range(0, taps, stride):
                rows = x[item, tap:].as_strided(
                    (count, min(stride, taps - tap) * width),
                    (stride * width, 1),
                )
                part = matrix[tap * width : tap * width + rows.shape[1]]
                if tap == 0:
                    torch.mm(rows, part, out=y[item])
                else:
                    y[item].addmm_(rows, part)
        return y if self.bias is None else y.add_(self.bias)

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """All inputs of each output step in a row: [B, T', K * in]."""
        x = x.contiguous()
        batch, steps, width = x.shape
        taps, stride = self.kernel_size[0], self.stride[0]
        rows = x.as_strided(
            (batch, (steps - taps) // stride + 1, taps * width),
            (steps * width, stride * width, 1),
        )
        return rows.contiguous()


def _spectrum(weight: torch.Tensor, groups: int, size: int) -> torch.Tensor:
    """[out, in, K] to spectra [(size // 2 + 1) * groups, in, out / groups]."""
    # Conjugate: a network's convolution is a correlation.
    spectrum = torch.fft.rfft(weight.float(), n=size).conj()
    spectrum = spectrum.unflatten(0, (groups, -1)).permute(3, 0, 2, 1)
    return spectrum.flatten(0, 1).resolve_conj().contiguous()


def _group_matrices(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[out, in, K] to [groups, K * in, out / groups]."""
    matrices = weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)
    return matrices.flatten(1, 2).contiguous()


class WideConv(nn.Conv1d):
    """Grouped convolution of many taps over [B, T, C], without padding.

    On the CPU by overlap-save: spectra of blocks times that of the kernel, a
    matrix product per frequency and group. For 128 taps and groups of 64
    channels that is a thirtieth of the multiplications. For few frames, as in
    the chunks of a stream, it is one matrix product per group.
    """

    # With fewer, the transforms cost more than they save.
    MIN_TAPS, MIN_STEPS = 32, 32

    def __init__(self, dim: int, kernel_size: int, groups: int):
        super().__init__(dim, dim, kernel_size, groups=groups)
        self.spectrum = Derived(
            partial(_spectrum, groups=groups, size=2 * kernel_size)
        )
        self.matrices = Derived(partial(_group_matrices, groups=groups))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [B, T, dim], T >= K, to frames [B, T - K + 1, dim]."""
        batch, steps, dim = x.shape
        taps = self.kernel_size[0]
        steps = steps - taps + 1
        if not fast_path(x) or x.dtype != torch.float32 or taps < self.MIN_TAPS:
            return super().forward(x.mT).mT
        if steps < self.MIN_STEPS:
            return self._few(x, steps)
        # Blocks are twice as long as the kernel: half of each is valid.
        size, hop = 2 * taps, taps
        blocks = -(-steps // hop)
        x = F.pad(x, (0, 0, 0, (blocks - 1) * hop + size - x.shape[1]))
        spectra = torch.fft.rfft(x.unfold(1, size, hop))
        spectra = spectra.reshape(batch * blocks, self.groups, -1, taps + 1)
        products = torch.bmm(
            spectra.permute(3, 1, 0, 2).flatten(0, 1),
            self.spectrum(self.weight),
        )
        products = products.view(taps + 1, self.groups, batch * blocks, -1)
        y = torch.fft.irfft(products.permute(2, 1, 3, 0), n=size)[..., :hop]
        y = y.reshape(batch, blocks, dim, hop).transpose(2, 3).flatten(1, 2)
        return y[:, :steps] + self.bias

    def _few(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        """Convolve to a few frames."""
        batch, length, dim = x.shape
        width = dim // self.groups
        x = x.unflatten(-1, (self.groups, width)).permute(2, 0, 1, 3)
        # Overlapping rows: the input of each frame, not copied.
        rows = x.contiguous().as_strided(
            (self.groups, batch, steps, self.kernel_size[0] * width),
            (batch * length * width, length * width, width, 1),
        )
        y = torch.bmm(rows.flatten(1, 2), self.matrices(self.weight))
        y = y.unflatten(1, (batch, steps)).permute(1, 2, 0, 3).flatten(2)
        return y + self.bias
