"""Convolutions over [B, T, C] in the layouts that run fastest.

Frames stay contiguous from layer to layer: what is no matrix product with a
library's kernel behind it becomes one, and nothing is transposed.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.derived import Derived, fast_path

__all__ = [
    "Linear",
    "PointwiseConv",
    "StridedConv",
    "WideConv",
    "depthwise_conv",
    "pack",
    "pack_depthwise",
    "packed_product",
    "packing_pays",
    "then_gelu",
]


# oneDNN multiplies by weights in its own layout: a sixth faster while the
# weights, not the frames, are most of what is read. PyTorch has no public
# name for it, so it is done without where these are missing.
PACKED = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name)
    for name in (
        "_convolution_pointwise",
        "_linear_pointwise",
        "_reorder_convolution_weight",
        "_reorder_linear_weight",
    )
)
# Frames for which it pays, by type: measured, see docs/speed.md.
PACKED_FRAMES = {torch.float32: range(1, 641)}
if (
    PACKED
    and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
):
    PACKED_FRAMES[torch.bfloat16] = range(1, 1 << 62)
# Smaller weights are multiplied before oneDNN has found its kernel.
PACKED_SIZE = 1 << 19
# Up to so many steps a convolution is one such product of copied rows.
FEW = 64


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Bring a weight into oneDNN's own layout.

    Arguments
    ---------
    weight : torch.Tensor
        Of a linear layer [out, in], contiguous.

    Returns
    -------
    torch.Tensor
        Opaque.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def packing_pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether to multiply by a packed weight.

    Arguments
    ---------
    x : torch.Tensor
        Frames [..., in].
    weight : torch.Tensor
        What would be packed.

    Returns
    -------
    bool
        Whether it can be done, and is faster.
    """
    frames = PACKED_FRAMES.get(x.dtype, range(0))
    return (
        PACKED
        and weight.numel() >= PACKED_SIZE
        and fast_path(x)
        and x.numel() // x.shape[-1] in frames
        and not weight.is_inference()
    )


def packed_product(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str = "none",
) -> torch.Tensor:
    """Multiply by a packed weight.

    Arguments
    ---------
    x : torch.Tensor
        Frames [..., in].
    packed : torch.Tensor
        From :func:`pack`.
    bias : torch.Tensor, optional
        One value a channel [out].
    activation : str
        ``none`` or ``gelu``.

    Returns
    -------
    torch.Tensor
        Frames [..., out].
    """
    return torch.ops.mkldnn._linear_pointwise(
        x, packed, bias, activation, [], "none"
    )


class Linear(nn.Linear):
    """Linear layer that takes any float type and gives that of its weight.

    With the weight in bfloat16 and all else in float32, the products alone
    are in low precision: see :mod:`speechbrain_focalcodec.acceleration`.

    Arguments
    ---------
    in_features, out_features : int
        Channels.

    Example
    -------
    >>> Linear(4, 6).bfloat16()(torch.randn(2, 9, 4)).dtype
    torch.bfloat16
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.packed = Derived(pack)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Arguments
        ---------
        x : torch.Tensor
            Frames [..., in_features].

        Returns
        -------
        torch.Tensor
            Frames [..., out_features].
        """
        return self._multiply(x, "none")

    def then_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply and apply GELU, in one step where that can be had.

        Arguments
        ---------
        x : torch.Tensor
            Frames [..., in_features].

        Returns
        -------
        torch.Tensor
            Frames [..., out_features].
        """
        return self._multiply(x, "gelu")

    def _multiply(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        x = x.to(self.weight.dtype)
        if packing_pays(x, self.weight):
            return packed_product(
                x, self.packed(self.weight), self.bias, activation
            )
        y = F.linear(x, self.weight, self.bias)
        return y if activation == "none" else F.gelu(y)


def then_gelu(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer and GELU, in one step where the layer has one.

    Layers that took the place of a :class:`Linear` (adapters, LoRA) do not.

    Arguments
    ---------
    layer : nn.Module
        A linear layer.
    x : torch.Tensor
        Frames [..., in_features].

    Returns
    -------
    torch.Tensor
        Frames [..., out_features].

    Example
    -------
    >>> then_gelu(nn.Linear(2, 3), torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """
    joined = getattr(layer, "then_gelu", None)
    return F.gelu(layer(x)) if joined is None else joined(x)


def _pack_first_tap(weight: torch.Tensor) -> torch.Tensor:
    return pack(weight[..., 0].contiguous())


class PointwiseConv(nn.Conv1d):
    """Convolution of one tap over [B, T, C]: a linear layer.

    Arguments
    ---------
    in_dim, out_dim : int
        Channels.

    Example
    -------
    >>> PointwiseConv(4, 6)(torch.randn(2, 9, 4)).shape
    torch.Size([2, 9, 6])
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, 1)
        self.packed = Derived(_pack_first_tap)
        # A layer in 8 bits to use instead: see acceleration.py.
        self.quantized: nn.Module | None = None

    def as_matrix(self) -> torch.Tensor:
        """The weight of the same linear layer.

        Returns
        -------
        torch.Tensor
            [out, in].
        """
        return self.weight[..., 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, in_dim].

        Returns
        -------
        torch.Tensor
            Frames [B, T, out_dim], in the weight's type.
        """
        if self.quantized is not None:
            return self.quantized(x)
        x = x.to(self.weight.dtype)
        if packing_pays(x, self.weight):
            return packed_product(x, self.packed(self.weight), self.bias)
        return F.linear(x, self.as_matrix(), self.bias)


def pack_depthwise(weight: torch.Tensor) -> torch.Tensor:
    """Bring the taps of a depthwise convolution into oneDNN's own layout.

    Arguments
    ---------
    weight : torch.Tensor
        Taps [C, 1, K].

    Returns
    -------
    torch.Tensor
        Opaque.
    """
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
    """Depthwise convolution, as a flat image with its channels last.

    Arguments
    ---------
    x : torch.Tensor
        Frames [B, T, C].
    weight : torch.Tensor
        Taps [C, 1, K].
    bias : torch.Tensor, optional
        One value a channel [C].
    padding : int
        Zeros on both sides.
    packed : Derived, optional
        Keeps the weight in oneDNN's layout, by :func:`pack_depthwise`: pays
        for hundreds of taps and few steps, whose every call is a reordering
        of the weight otherwise.

    Returns
    -------
    torch.Tensor
        Frames [B, T + 2 * padding - K + 1, C].

    Example
    -------
    >>> depthwise_conv(
    ...     torch.ones(1, 5, 2), torch.ones(2, 1, 3), None
    ... ).shape
    torch.Size([1, 3, 2])
    """
    dtype = weight.dtype
    if x.device.type == "cpu":
        # oneDNN never returns from bfloat16 and more than 14 taps.
        half = dtype == torch.bfloat16
        if half or torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return depthwise_conv(
                    x.float(),
                    weight.float(),
                    None if bias is None else bias.float(),
                    padding,
                ).to(dtype)
    x = x.to(dtype)
    # Channels must lie side by side for the fast kernel.
    image = x.contiguous().transpose(1, 2).unsqueeze(2)
    if packed is not None and packing_pays(x, weight):
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
    """[out, in, K] to [K * in, out]: one row a tap and input channel."""
    return weight.permute(2, 1, 0).flatten(0, 1).contiguous()


def _pack_as_matrix(weight: torch.Tensor) -> torch.Tensor:
    return pack(_as_matrix(weight).mT.contiguous())


class StridedConv(nn.Conv1d):
    """Convolution without padding over [B, T, C].

    On the CPU, `stride` steps side by side are the rows of a matrix, so a
    kernel of K taps takes ceil(K / stride) products and no copy.

    Arguments
    ---------
    in_dim, out_dim : int
        Channels.
    kernel_size, stride : int
        Taps and hop.
    bias : bool
        Whether a bias is added.
    groups : int
        Groups of channels; with more than one there is no fast path.

    Example
    -------
    >>> StridedConv(4, 6, 3, 2)(torch.randn(2, 9, 4)).shape
    torch.Size([2, 4, 6])
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
        """The weight of the linear layer that takes all taps' steps.

        Returns
        -------
        torch.Tensor
            [out, K * in].
        """
        return _as_matrix(self.weight).mT

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve.

        Arguments
        ---------
        x : torch.Tensor
            Steps [B, T, in_dim], T >= kernel_size.

        Returns
        -------
        torch.Tensor
            Steps [B, (T - kernel_size) // stride + 1, out_dim], in the
            weight's type.
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
        if width > 1 and batch * count <= FEW and packing_pays(x, self.weight):
            return packed_product(
                self._rows(x), self.packed(self.weight), self.bias
            )
        matrix = self.matrix(self.weight)
        if width == 1:
            # Rows of a few samples: copying them beats many small products.
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
        """All that each output step sees, in a row: [B, T', K * in]."""
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
    # Conjugate: what a network calls convolution is a correlation.
    spectrum = torch.fft.rfft(weight.float(), n=size).conj()
    spectrum = spectrum.unflatten(0, (groups, -1)).permute(3, 0, 2, 1)
    return spectrum.flatten(0, 1).resolve_conj().contiguous()


def _group_matrices(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[out, in, K] to [groups, K * in, out / groups]."""
    matrices = weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)
    return matrices.flatten(1, 2).contiguous()


class WideConv(nn.Conv1d):
    """Grouped convolution of many taps over [B, T, C], without padding.

    On the CPU by overlap-save: spectra of blocks times those of the kernel,
    a product of matrices for each frequency and group. For 128 taps and
    groups of 64 channels that is a thirtieth of the multiplications. Few
    frames, the chunks of a stream, are a product of matrices for each group.

    Arguments
    ---------
    dim : int
        Channels.
    kernel_size, groups : int
        Taps and groups.

    Example
    -------
    >>> WideConv(8, 16, 4)(torch.randn(2, 40, 8)).shape
    torch.Size([2, 25, 8])
    """

    # With fewer the transforms cost more than they save.
    MIN_TAPS, MIN_STEPS = 32, 32

    def __init__(self, dim: int, kernel_size: int, groups: int):
        super().__init__(dim, dim, kernel_size, groups=groups)
        self.spectrum = Derived(
            partial(_spectrum, groups=groups, size=2 * kernel_size)
        )
        self.matrices = Derived(partial(_group_matrices, groups=groups))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, dim], T >= kernel_size.

        Returns
        -------
        torch.Tensor
            Frames [B, T - kernel_size + 1, dim].
        """
        batch, steps, dim = x.shape
        taps = self.kernel_size[0]
        steps = steps - taps + 1
        if not fast_path(x) or x.dtype != torch.float32 or taps < self.MIN_TAPS:
            return super().forward(x.mT).mT
        if steps < self.MIN_STEPS:
            return self._few(x, steps)
        # Of a block twice as long as the kernel, half is not wrapped around.
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
        # Overlapping rows: what each frame sees, without copying it.
        rows = x.contiguous().as_strided(
            (self.groups, batch, steps, self.kernel_size[0] * width),
            (batch * length * width, length * width, width, 1),
        )
        y = torch.bmm(rows.flatten(1, 2), self.matrices(self.weight))
        y = y.unflatten(1, (batch, steps)).permute(1, 2, 0, 3).flatten(2)
        return y + self.bias
