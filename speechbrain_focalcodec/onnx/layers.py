"""Layers for exported graphs of offline models.

A graph holds for any batch and any length: it may not branch on values or
count steps in Python, and it uses only operators of ONNX. Each class here
replaces a layer: it has its weights and computes the same output.
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
from speechbrain_focalcodec.modules.extractor import FeatureExtractor
from speechbrain_focalcodec.modules.masking import length_mask, zero_beyond
from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.modules.scaling import DownScale
from speechbrain_focalcodec.modules.vocos import MAX_MAGNITUDE, ISTFTHead
from speechbrain_focalcodec.modules.wavlm import TransformerEncoder
from speechbrain_focalcodec.onnx.fourier import (
    InverseRealFourier,
    RealFourier,
)

__all__ = ["exportable"]

# Heads whose scores [B, heads, T, T] are held at once.
HEADS = 4


class _Extractor(nn.Module):
    """WavLM's strided convolutions."""

    def __init__(self, extractor: FeatureExtractor):
        super().__init__()
        self.layers: Any = extractor.layers
        self.reach = extractor.reach
        self.hop_length = extractor.hop_length
        self.output_lengths = extractor.output_lengths

    def forward(
        self, sig: torch.Tensor, lengths: torch.Tensor, state: None = None
    ) -> torch.Tensor:
        # Just as long as the frames reach: no more, and one of them at least.
        steps = sig.shape[1]
        hops: Any = torch.sym_max(steps - self.reach, 0) // self.hop_length
        used = hops * self.hop_length + self.reach
        sig = F.pad(sig, (0, used - steps))
        # Only inputs shorter than the first frame see padding.
        first = self._extract(
            sig[:, : self.reach], lengths.clamp(max=self.reach)
        )
        return torch.cat([first, self._extract(sig)[:, 1:]], dim=1)

    def _extract(
        self, sig: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = sig[..., None]
        for layer in self.layers:
            x = F.gelu(layer.norm(layer.conv(zero_beyond(x, lengths))))
            if lengths is not None:
                lengths = layer.output_lengths(lengths)
        return x


class _Attention(nn.Module):
    """Attention over the whole utterance, some heads at a time."""

    def __init__(self, attention: RelativeAttention):
        super().__init__()
        self.attention: Any = attention

    def forward(
        self,
        x: torch.Tensor,
        bias: torch.Tensor,
        lengths: torch.Tensor,
        state: None = None,
    ) -> torch.Tensor:
        """Attend; `bias` is that of all pairs [H, T, T]."""
        layer = self.attention
        query, key, value = (
            y.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
            for y in layer.qkv_proj(x).chunk(3, dim=-1)
        )
        gate = layer._gate(layer._split_heads(x))
        query = query * query.shape[-1] ** -0.5
        unseen = ~length_mask(lengths, x.shape[1])[:, None, None]
        lowest = torch.finfo(x.dtype).min
        parts = []
        for head in range(0, layer.num_heads, HEADS):
            heads = slice(head, head + HEADS)
            scores = query[:, heads] @ key[:, heads].transpose(2, 3)
            scores = scores + gate[:, heads] * bias[heads]
            scores = scores.masked_fill(unseen, lowest)
            parts.append(scores.softmax(dim=-1) @ value[:, heads])
        y = torch.cat(parts, dim=1)
        return layer.out_proj(y.transpose(1, 2).flatten(2))


class _Transformer(nn.Module):
    """WavLM's transformer, whose position bias is a table for any length."""

    def __init__(self, encoder: TransformerEncoder, max_distance: int):
        super().__init__()
        self.positional_embedding = encoder.positional_embedding
        self.layers: Any = encoder.layers
        # From the largest distance on there is one bias.
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
        self, x: torch.Tensor, lengths: torch.Tensor, state: None = None
    ) -> torch.Tensor:
        x = zero_beyond(x, lengths)
        x = x + self.positional_embedding(x)
        steps = x.shape[1]
        index = torch.arange(steps)
        far = self.max_distance
        distance = (index - index[:, None]).clamp(-far, far) + far
        bias = self.table.index_select(1, distance.reshape(-1))
        bias = bias.reshape(-1, steps, steps)
        for layer in self.layers:
            x = layer(x, bias, lengths)
        return x


class _LogMel(nn.Module):
    """The log-mel encoder, its spectra by products of matrices."""

    def __init__(self, mel: Any):
        super().__init__()
        self.mel = mel
        self.fourier = RealFourier(mel.n_fft)
        bins = self.fourier.p * self.fourier.bins
        filterbank = torch.zeros(bins, mel.output_dim)
        filterbank[self.fourier.order] = mel.filterbank
        self.filterbank: torch.Tensor
        self.register_buffer("filterbank", filterbank)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return self.mel.output_lengths(lengths)

    def forward(
        self, sig: torch.Tensor, lengths: torch.Tensor, state: None = None
    ) -> torch.Tensor:
        mel = self.mel
        hop, size = mel.hop_length, mel.n_fft
        sig = zero_beyond(sig, lengths)
        batch, steps = sig.shape
        frames = (steps + hop - 1) // hop
        # A frame is a few hops side by side.
        pieces = -(-size // hop)
        hops = frames + pieces - 1
        left = (size - hop) // 2
        sig = F.pad(sig, (left, hops * hop - steps - left))
        sig = sig.reshape(batch, hops, hop)
        x = torch.cat([sig[:, i : i + frames] for i in range(pieces)], dim=2)
        x = self.fourier(x[..., :size] * mel.window)
        x = ((x @ self.filterbank + mel.floor).log() - mel.mean) / mel.std
        return x


class _DownScale(nn.Module):
    """Down-scaling, filled up so that no frame is lost, whatever is left."""

    def __init__(self, scale: DownScale):
        super().__init__()
        self.scale: Any = scale

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return self.scale.output_lengths(lengths)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor, state: None = None
    ) -> torch.Tensor:
        x = F.pad(zero_beyond(x, lengths), (0, 0, 0, self.scale.factor - 1))
        return self.scale.activation(self.scale.downscale(x))


class _ISTFTHead(nn.Module):
    """Vocos' head, its inverse transform by products of matrices."""

    def __init__(self, head: ISTFTHead):
        super().__init__()
        self.head: Any = head
        self.fourier = InverseRealFourier(head.n_fft)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor, state: None = None
    ) -> torch.Tensor:
        head = self.head
        magnitude, phase = head.proj(x).chunk(2, dim=-1)
        magnitude = magnitude.exp().clamp(max=MAX_MAGNITUDE)
        frames = self.fourier(magnitude * phase.cos(), magnitude * phase.sin())
        mask = length_mask(lengths, x.shape[1])[..., None]
        frames = (frames * head.window).masked_fill(~mask, 0)
        sig = self._overlap_add(frames)
        envelope = self._overlap_add(mask.to(frames) * head.window.square())
        return sig / envelope.clamp(min=1e-11)

    def _overlap_add(self, frames: torch.Tensor) -> torch.Tensor:
        """See :class:`ISTFTHead`; out of place."""
        size, hop = self.head.n_fft, self.head.hop_length
        batch, steps, _ = frames.shape
        pieces = -(-size // hop)
        frames = F.pad(frames, (0, pieces * hop - size))
        total, *parts = (
            F.pad(part, (0, 0, k, pieces - 1 - k))
            for k, part in enumerate(frames.split(hop, dim=2))
        )
        for part in parts:
            total = total + part
        start = (size - hop) // 2
        return total.flatten(1)[:, start : start + steps * hop]


PLACES: dict[type[nn.Module], type[nn.Module]] = {
    FeatureExtractor: _Extractor,
    RelativeAttention: _Attention,
    LogMel: _LogMel,
    DownScale: _DownScale,
    ISTFTHead: _ISTFTHead,
}


def exportable(part: Any, max_distance: int = 0) -> Any:
    """A copy of a part of an offline codec that can be exported.

    Arguments
    ---------
    part : nn.Module
        An encoder, compressor, decompressor or decoder. It is called with
        lengths always.
    max_distance : int
        Of WavLM's position bias.

    Returns
    -------
    nn.Module
        Called as `part` is; in float32 on the CPU.

    Example
    -------
    >>> scale = DownScale(4, 6, 2)
    >>> exportable(scale)(torch.randn(1, 9, 4), torch.tensor([9])).shape
    torch.Size([1, 5, 6])
    """
    part = copy.deepcopy(part).to("cpu", torch.float32)
    return _replaced(part.eval().requires_grad_(False), max_distance)


def _replaced(module: Any, max_distance: int) -> Any:
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, max_distance))
    if isinstance(module, TransformerEncoder):
        return _Transformer(module, max_distance)
    return PLACES.get(type(module), lambda x: x)(module)
