"""Self-attention with WavLM's gated relative position bias.

WavLM (Chen et al., 2022), section 3.2; by chunks over a window in its causal
variant (FocalCodec-Stream, section 2.2).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import StreamState

__all__ = ["RelativeAttention"]

# Scores (heads x queries x keys) of an utterance that are held at once.
SCORES = 1 << 24


class RelativeAttention(nn.Module):
    """Self-attention with WavLM's gated relative position bias.

    Causal, frames come in chunks; a chunk sees itself and what precedes it,
    `window_size` frames in all.

    Arguments
    ---------
    dim, num_heads : int
        Channels and heads.
    num_buckets, max_distance : int
        Of the relative positions (T5).
    chunk : int, optional
        Frames a chunk; None when offline.
    window_size : int
        Causal only: frames that a chunk sees.

    Example
    -------
    >>> attention = RelativeAttention(8, 2, 32, 64)
    >>> attention(torch.randn(1, 9, 8), torch.randn(32, 2)).shape
    torch.Size([1, 9, 8])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_buckets: int,
        max_distance: int,
        chunk: int | None = None,
        window_size: int = 512,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.chunk = chunk
        self.window_size = window_size
        head_dim = dim // num_heads
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.gru_rel_pos_linear = nn.Linear(head_dim, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(
        self,
        x: torch.Tensor,
        embedding: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Attend.

        Arguments
        ---------
        x : torch.Tensor
            Normalised frames [B, T, dim].
        embedding : torch.Tensor
            Bias of each bucket and head [num_buckets, num_heads].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Causal only: keys and values of earlier chunks.

        Returns
        -------
        torch.Tensor
            Frames [B, T, dim].
        """
        steps = x.shape[1]
        query, key, value = (
            self._split_heads(y) for y in self.qkv_proj(x).chunk(3, dim=-1)
        )
        gate = self._gate(self._split_heads(x))
        if state is not None:
            key, value = self._carry(key, value, state)
        past = key.shape[2] - steps
        total = lengths if lengths is not None else x.new_tensor([steps]).long()
        total = total + past

        outputs = []
        width = past + steps
        if self.chunk is not None:
            width = min(width, 2 * self.window_size)
        block = max(1, SCORES // (self.num_heads * width))
        if self.chunk is not None:
            block = min(block, self.window_size)
            block = max(1, block // self.chunk) * self.chunk
        for start in range(0, steps, block):
            stop = min(start + block, steps)
            low, high = 0, past + steps
            if self.chunk is not None:
                # The cut of a last chunk reaches further to the left.
                low = max(0, past + start - self.window_size)
                high = past + stop
            bias = self._position_bias(
                embedding, past + start, stop - start, low, high - low
            )
            scores = gate[:, :, start:stop] * bias
            queries = torch.arange(past + start, past + stop, device=x.device)
            keys = torch.arange(low, high, device=x.device)
            allowed = self._allowed(queries, keys, total)
            scores = scores.masked_fill(
                ~allowed[:, None], torch.finfo(scores.dtype).min
            )
            outputs.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:stop],
                    key[:, :, low:high],
                    value[:, :, low:high],
                    attn_mask=scores.to(query.dtype),
                )
            )
        output = torch.cat(outputs, dim=2)
        return self.out_proj(output.transpose(1, 2).flatten(2))

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, dim] to [B, heads, T, head_dim]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _gate(self, x: torch.Tensor) -> torch.Tensor:
        """Gate of the position bias [B, heads, T, 1] from split frames."""
        y = self.gru_rel_pos_linear(x).unflatten(-1, (2, 4)).sum(-1)
        a, b = torch.sigmoid(y).chunk(2, dim=-1)
        return a * (b * self.gru_rel_pos_const - 1.0) + 2.0

    def _carry(
        self, key: torch.Tensor, value: torch.Tensor, state: StreamState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put kept keys and values before the new ones, and keep the last."""
        kept_key, kept_value = state.get("key"), state.get("value")
        if kept_key is not None and kept_value is not None:
            key = torch.cat([kept_key, key], dim=2)
            value = torch.cat([kept_value, value], dim=2)
        keep = max(key.shape[2] - (self.window_size - 1), 0)
        state["key"], state["value"] = key[:, :, keep:], value[:, :, keep:]
        return key, value

    def _allowed(
        self, queries: torch.Tensor, keys: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """Which keys each query sees: bool [B, queries, keys]."""
        total = total[:, None, None]
        if self.chunk is None:
            return (keys < total).expand(-1, len(queries), -1)
        # The first query of a block starts a chunk.
        first = queries[:1]
        end = first + ((queries - first) // self.chunk + 1) * self.chunk
        end = torch.minimum(end[:, None], total)
        return (keys < end) & (keys >= end - self.window_size)

    def _position_bias(
        self,
        embedding: torch.Tensor,
        first_query: int,
        queries: int,
        first_key: int,
        keys: int,
    ) -> torch.Tensor:
        """Bias [heads, queries, keys], a function of key - query alone.

        One value for each distance is looked up; rows are views shifted by
        one.
        """
        distance = torch.arange(queries + keys - 1, device=embedding.device)
        distance = distance + (first_key - first_query - queries + 1)
        bias = embedding[self._bucket(distance)].T
        return bias.unfold(-1, keys, 1).flip(1)

    def _bucket(self, distance: torch.Tensor) -> torch.Tensor:
        """T5's bucket of a distance: near ones exact, far ones logarithmic."""
        half = self.num_buckets // 2
        exact = half // 2
        size = distance.abs()
        far = torch.log(size.clamp(min=1).float() / exact)
        far = far / math.log(self.max_distance / exact) * (half - exact)
        far = (exact + far.long()).clamp(max=half - 1)
        return (distance > 0) * half + torch.where(size < exact, size, far)
