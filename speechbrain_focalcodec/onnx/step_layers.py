"""Layers for exported steps of causal models.

A step codes one chunk of a fixed size; only the batch size is free. Chunks are
small, so reading weights is most of the work: layers are matrix products
where they can be, since a runtime packs matrices once.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.attention import (
    RelativeAttention,
    position_bias,
)
from speechbrain_focalcodec.modules.causal import StepState, extend_left, scope
from speechbrain_focalcodec.modules.convnext import TimeConv
from speechbrain_focalcodec.modules.focal import FocalModulation
from speechbrain_focalcodec.modules.layouts import StridedConv, WideConv
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.modules.vocos import MAX_MAGNITUDE, ISTFTHead
from speechbrain_focalcodec.modules.wavlm import TransformerEncoder
from speechbrain_focalcodec.onnx.fourier import (
    InverseRealFourier,
    RealFourier,
)

__all__ = ["StartState", "steppable"]

# Added to the scores of keys that are not seen.
UNSEEN = -1e30


class StartState(StepState):
    """Records the initial state of a step while it runs once.

    Example
    -------
    >>> state = StartState()
    >>> extend_left(torch.ones(1, 3, 4), 2, state).shape
    torch.Size([1, 5, 4])
    >>> state.kept
    {'context': tensor([[[0., 0., 0., 0.],
             [0., 0., 0., 0.]]])}
    """

    def __init__(
        self,
        kept: dict[str, torch.Tensor] | None = None,
        seen: torch.Tensor | None = None,
        *args: Any,
    ):
        if seen is None:
            seen = torch.zeros(1, dtype=torch.int64)
        super().__init__({} if kept is None else kept, seen, *args)

    def scope(self, name: str) -> "StartState":
        """See :class:`StepState`.

        Arguments
        ---------
        name : str
            The part's name.

        Returns
        -------
        StartState
            A view.
        """
        prefix = f"{self.prefix}{name}."
        return StartState(self.kept, self.seen, self.table, prefix)

    def context(self, start: torch.Tensor) -> torch.Tensor:
        """See :class:`StepState`.

        Arguments
        ---------
        start : torch.Tensor
            Context at the start of a stream.

        Returns
        -------
        torch.Tensor
            The same.
        """
        self.kept[self.prefix + "context"] = torch.zeros_like(start)
        return super().context(start)

    def append(
        self,
        name: str,
        x: torch.Tensor,
        past: int,
        dim: int = 1,
        newest_first: bool = False,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See :class:`StepState`.

        Arguments
        ---------
        name, x, past, dim, newest_first, start
            See there.

        Returns
        -------
        torch.Tensor
            The steps with zeros before them.
        """
        shape = list(x.shape)
        shape[dim] = past
        self.kept[self.prefix + name] = x.new_zeros(shape)
        return super().append(name, x, past, dim, newest_first, start)


def rows_of(x: torch.Tensor, taps: int, stride: int) -> torch.Tensor:
    """The inputs of each output step of a convolution, as one row.

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
        # [out, in, K] to [K * in, out / groups] of each group.
        weights = conv.weight.unflatten(0, (conv.groups, -1))
        for i, weight in enumerate(weights.permute(0, 3, 2, 1)):
            matrix = weight.flatten(0, 1).contiguous()
            self.register_buffer(f"matrix_{i}", matrix)
        assert conv.bias is not None
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = self.kernel_size[0]
        steps = x.shape[1] - taps + 1
        # [B, T, C] to [groups, B, T, C / groups].
        x = x.unflatten(-1, (self.groups, -1)).permute(2, 0, 1, 3)
        rows = torch.stack(
            [x[:, :, i : i + taps].flatten(2) for i in range(steps)], dim=2
        )
        y = [rows[i] @ getattr(self, f"matrix_{i}") for i in range(self.groups)]
        return torch.cat(y, dim=2) + self.bias


class _StepModulation(FocalModulation):
    """Focal modulation whose context lies as its convolutions read it."""

    def _convolve(
        self,
        conv: nn.Conv1d,
        context: torch.Tensor,
        mask: torch.Tensor | None,
        state: Any,
    ) -> torch.Tensor:
        x = context.transpose(1, 2)
        past = conv.kernel_size[0] - 1
        if past:
            x = state.append("context", x, past, dim=2, start=x[..., :1])
        # onnxruntime is three times as fast when it is an image.
        x = F.conv2d(
            x.unsqueeze(2), conv.weight.unsqueeze(2), conv.bias, groups=self.dim
        )
        return x.squeeze(2).transpose(1, 2)


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

    def _replace(
        self, state: StepState, name: str, x: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Put a step's frames [B, H, F, D] in their place of the ring."""
        batch, heads, frames, width = x.shape
        if isinstance(state, StartState):
            blocks = ring_size(self.attention, frames) // frames
            kept = x.new_zeros(batch, heads, blocks, frames * width)
            state.kept[state.prefix + name] = kept
        # A row holds all frames of a step.
        kept = state.kept[state.prefix + name]
        index = (
            torch.arange(batch)[:, None],
            torch.arange(heads),
            places[:, None],
        )
        kept = kept.index_put(index, x.flatten(2))
        state[name] = kept
        return kept.unflatten(3, (frames, width)).flatten(2, 3)


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
        """The position bias, which all layers share.

        Returns
        -------
        table : torch.Tensor
            Bias [B, H, F, R] of the queries of a step to the ring's keys.
        unseen : torch.Tensor
            Mask to add to it [B, 1, F, R].
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

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor, state: StepState
    ) -> torch.Tensor:
        magnitude, phase = self.head.proj(x).chunk(2, dim=-1)
        magnitude = magnitude.exp().clamp(max=MAX_MAGNITUDE)
        frames = self.fourier(magnitude * phase.cos(), magnitude * phase.sin())
        return self.head.join(frames, state)


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
    if isinstance(module, FocalModulation):
        module.__class__ = _StepModulation  # it has no state of its own
        return module
    return PLACES.get(type(module), lambda x: x)(module)
