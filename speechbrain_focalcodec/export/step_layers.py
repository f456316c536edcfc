"""Layers that take another's place in a step that is exported.

A step codes one chunk of a fixed size; only the batch is free. Chunks are
small, so that reading weights is most of the work: what can be is a product
of a matrix, which a runtime packs once.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.export.fourier import (
    InverseRealFourier,
    RealFourier,
)
from speechbrain_focalcodec.modules.attention import (
    RelativeAttention,
    position_bias,
)
from speechbrain_focalcodec.modules.causal import StepState, extend_left, scope
from speechbrain_focalcodec.modules.convnext import TimeConv
from speechbrain_focalcodec.modules.layouts import StridedConv, WideConv
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.modules.vocos import MAX_MAGNITUDE, ISTFTHead
from speechbrain_focalcodec.modules.wavlm import TransformerEncoder

__all__ = ["ring_size", "steppable"]

# Added to the scores of keys that are not seen.
UNSEEN = -1e30


def rows_of(x: torch.Tensor, taps: int, stride: int) -> torch.Tensor:
    """What each output step of a convolution sees, in a row.

    Arguments
    ---------
    x : torch.Tensor
        Steps [B, T, C], T known.
    taps, stride : int
        Of the convolution.

    Returns
    -------
    torch.Tensor
        Rows [B, (T - taps) // stride + 1, taps * C].

    Example
    -------
    >>> rows_of(torch.arange(5.0)[None, :, None], 3, 2)
    tensor([[[0., 1., 2.],
             [2., 3., 4.]]])
    """
    count = (x.shape[1] - taps) // stride + 1
    width = x.shape[2]
    x = F.pad(x, (0, 0, 0, max(0, count * stride + taps - x.shape[1])))
    parts = []
    # `stride` steps side by side are a row already.
    for tap in range(0, taps, stride):
        part = x[:, tap : tap + count * stride]
        part = part.reshape(-1, count, stride * width)
        parts.append(part[..., : (taps - tap) * width])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class _Product(nn.Module):
    """A convolution without padding as a product of matrices."""

    def __init__(self, conv: StridedConv):
        super().__init__()
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.weight = nn.Parameter(conv.as_matrix().contiguous(), False)
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = rows_of(x, self.kernel_size[0], self.stride[0])
        return F.linear(rows, self.weight, self.bias)


class _TimeProduct(_Product):
    """The same with context on the left."""

    def __init__(self, conv: TimeConv):
        super().__init__(conv)
        self.replicate = conv.replicate

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StepState | None = None,
    ) -> torch.Tensor:
        taps = self.kernel_size[0] - 1
        return super().forward(extend_left(x, taps, state, self.replicate))


class _WideProduct(nn.Module):
    """The wide convolution, a product for each group of channels."""

    def __init__(self, conv: WideConv):
        super().__init__()
        self.kernel_size, self.groups = conv.kernel_size, conv.groups
        # [out, in, K] to [groups, K * in, out / groups].
        matrices = conv.weight.unflatten(0, (conv.groups, -1))
        self.matrices: torch.Tensor
        self.register_buffer(
            "matrices",
            matrices.permute(0, 3, 2, 1).flatten(1, 2).contiguous(),
        )
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = self.kernel_size[0]
        steps = x.shape[1] - taps + 1
        # [B, T, C] to [groups, B, T, C / groups].
        x = x.unflatten(-1, (self.groups, -1)).permute(2, 0, 1, 3)
        rows = torch.stack(
            [x[:, :, i : i + taps].flatten(2) for i in range(steps)], dim=2
        )
        y = torch.matmul(rows, self.matrices[:, None])
        return y.permute(1, 2, 0, 3).flatten(2) + self.bias


def ring_size(attention: RelativeAttention, frames: int) -> int:
    """Keys that a step keeps: those before it, and its own.

    Arguments
    ---------
    attention : RelativeAttention
        Whose window they are of.
    frames : int
        Frames of a step.

    Returns
    -------
    int
        A multiple of `frames`.
    """
    return -(-(attention.window_size - 1) // frames) * frames + frames


class _StepAttention(nn.Module):
    """Attention whose keys and values lie in a ring.

    A step replaces those of the oldest step by its own, and nothing is moved;
    where a frame lies follows from how many were seen.
    """

    def __init__(self, attention: RelativeAttention):
        super().__init__()
        self.attention: Any = attention

    def forward(
        self,
        x: torch.Tensor,
        bias: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        lengths: torch.Tensor,
        state: StepState,
    ) -> torch.Tensor:
        """Attend; `bias` is of :meth:`_StepTransformer._bias`."""
        layer = self.attention
        heads = layer.num_heads
        query, key, value = (
            y.unflatten(-1, (heads, -1)).transpose(1, 2)
            for y in layer.qkv_proj(x).chunk(3, dim=-1)
        )
        gate = layer._gate(layer._split_heads(x))
        table, unseen, places = bias
        keys = self._replace(state, "key", key, places)
        values = self._replace(state, "value", value, places)
        query = query * query.shape[-1] ** -0.5
        scores = query @ keys.transpose(2, 3) + gate * table + unseen
        y = scores.softmax(dim=-1) @ values
        return layer.out_proj(y.transpose(1, 2).flatten(2))

    @staticmethod
    def _replace(
        state: StepState, name: str, x: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Put a step's frames [B, H, F, D] in their place of the ring."""
        kept = state.kept[state.prefix + name]
        size = kept.shape[2]
        kept = kept.unflatten(2, (-1, x.shape[2])).flatten(3)
        batch, heads = torch.arange(x.shape[0]), torch.arange(x.shape[1])
        index = (batch[:, None], heads, places[:, None])
        kept = kept.index_put(index, x.flatten(2))
        kept = kept.reshape(-1, x.shape[1], size, x.shape[3])
        state[name] = kept
        return kept


class _StepTransformer(nn.Module):
    """WavLM's transformer, a step of frames at a time."""

    def __init__(self, encoder: TransformerEncoder, max_distance: int):
        super().__init__()
        self.positional_embedding = encoder.positional_embedding
        self.layers: Any = encoder.layers
        attention: Any = encoder.layers[0].attention
        self.attention = attention.attention
        self.max_distance = max_distance
        self.table: torch.Tensor
        self.register_buffer(
            "table",
            position_bias(
                encoder.relative_embedding.weight,
                max_distance + 1,
                max_distance,
            ).flip(1),
        )

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor, state: StepState
    ) -> torch.Tensor:
        x = zero_beyond(x, lengths)
        x = x + self.positional_embedding(x, scope(state, "position"))
        bias = self._bias(x.shape[1], lengths, state.seen)
        for i, layer in enumerate(self.layers):
            x = layer(x, bias, lengths, scope(state, f"layers.{i}"))
        return x

    def _bias(
        self, frames: int, lengths: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is the same in all layers.

        Returns
        -------
        table : torch.Tensor
            Bias [B, H, F, R] of the queries of a step to the ring's keys.
        unseen : torch.Tensor
            What is added to it [B, 1, F, R].
        places : torch.Tensor
            Where the step goes in the ring, in steps, int64 [B].
        """
        layer = self.attention
        size = ring_size(layer, frames)
        # The number of the frame that lies in each place.
        last = (seen + (frames - 1))[:, None]
        key = last - (last + (size - torch.arange(size))) % size
        index = torch.arange(frames)
        query = seen[:, None] + index
        chunk_end = seen[:, None] + (index // layer.chunk + 1) * layer.chunk
        end = torch.minimum(chunk_end, (seen + lengths)[:, None])[..., None]
        key = key[:, None]
        sees = (key < end) & (key >= end - layer.window_size) & (key >= 0)
        far = self.max_distance
        distance = (key - query[..., None]).clamp(-far, far) + far
        table = self.table.index_select(1, distance.reshape(-1))
        table = table.reshape(-1, distance.shape[0], frames, size)
        unseen = torch.where(sees, 0.0, UNSEEN)[:, None]
        places = (seen // frames) % (size // frames)
        return table.transpose(0, 1), unseen, places


class _StepLogMel(nn.Module):
    """The causal log-mel encoder, its spectra by products of matrices."""

    def __init__(self, mel: Any):
        super().__init__()
        self.mel = mel
        self.fourier = RealFourier(mel.n_fft)
        filterbank = torch.zeros(
            self.fourier.p * self.fourier.bins, mel.output_dim
        )
        filterbank[self.fourier.order] = mel.filterbank
        self.filterbank: torch.Tensor
        self.register_buffer("filterbank", filterbank)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return self.mel.output_lengths(lengths)

    def forward(
        self, sig: torch.Tensor, lengths: torch.Tensor, state: StepState
    ) -> torch.Tensor:
        mel = self.mel
        sig = zero_beyond(sig, lengths)[..., None]
        side = mel.n_fft - mel.hop_length
        sig = extend_left(sig, side, state, replicate=False)
        x = self.fourier(rows_of(sig, mel.n_fft, mel.hop_length) * mel.window)
        return ((x @ self.filterbank + mel.floor).log() - mel.mean) / mel.std


class _StepISTFTHead(nn.Module):
    """Causal Vocos' head, its inverse transform by products of matrices."""

    def __init__(self, head: ISTFTHead):
        super().__init__()
        self.head: Any = head
        self.fourier = InverseRealFourier(head.n_fft)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        magnitude, phase = self.head.proj(x).chunk(2, dim=-1)
        magnitude = magnitude.exp().clamp(max=MAX_MAGNITUDE)
        frames = self.fourier(magnitude * phase.cos(), magnitude * phase.sin())
        return frames[..., -self.head.hop_length :].flatten(1)


PLACES: dict[type[nn.Module], type[nn.Module]] = {
    StridedConv: _Product,
    TimeConv: _TimeProduct,
    WideConv: _WideProduct,
    RelativeAttention: _StepAttention,
    LogMel: _StepLogMel,
    ISTFTHead: _StepISTFTHead,
}


def steppable(part: Any, max_distance: int = 0) -> Any:
    """A copy of a part of a causal codec whose step can be exported.

    Arguments
    ---------
    part : nn.Module
        An encoder, compressor, decompressor or decoder. It is called with
        lengths and a :class:`StepState` always.
    max_distance : int
        Of WavLM's position bias.

    Returns
    -------
    nn.Module
        Called as `part` is; in float32 on the CPU.

    Example
    -------
    >>> conv = TimeConv(4, 6, 3, causal=True)
    >>> state = StepState({"context": torch.zeros(1, 2, 4)}, torch.tensor([0]))
    >>> steppable(conv)(torch.ones(1, 5, 4), None, state).shape
    torch.Size([1, 5, 6])
    """
    part = copy.deepcopy(part).to("cpu", torch.float32)
    return _replaced(part.eval().requires_grad_(False), max_distance)


def _replaced(module: Any, max_distance: int) -> Any:
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, max_distance))
    if isinstance(module, TransformerEncoder):
        return _StepTransformer(module, max_distance)
    if isinstance(module, TimeConv) and module.groups > 1:
        return module
    return PLACES.get(type(module), lambda x: x)(module)
