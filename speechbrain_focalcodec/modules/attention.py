"""Self-attention with WavLM's gated relative position bias.

WavLM (Chen et al., 2022), section 3.2. The causal variant attends in chunks
over a window (FocalCodec-Stream, section 2.2).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.modules.derived import fast_path
from speechbrain_focalcodec.modules.layouts import Linear

__all__ = ["PositionBias", "RelativeAttention", "position_bias"]

# Scores (batch x heads x queries x keys) in memory at a time on the CPU: small
# enough for the bias to stay in the processor's cache.
SCORES = 1 << 21


def position_bias(
    embedding: torch.Tensor, reach: int, max_distance: int
) -> torch.Tensor:
    """Position bias [num_heads, 2 * reach - 1] of each distance, largest first.

    Computed once for all layers, for distances (key - query) of up to reach - 1
    frames. Distances are bucketed as in T5: near ones exactly, far ones
    logarithmically up to `max_distance`, half of the buckets for each sign.
    `embedding` is [num_buckets, num_heads].
    """
    half = embedding.shape[0] // 2
    exact = half // 2
    distance = torch.arange(reach - 1, -reach, -1, device=embedding.device)
    size = distance.abs()
    far = torch.log(size.clamp(min=1).float() / exact)
    far = far / math.log(max_distance / exact) * (half - exact)
    far = (exact + far.long()).clamp(max=half - 1)
    bucket = (distance > 0) * half + torch.where(size < exact, size, far)
    return embedding[bucket].T.contiguous()


class PositionBias:
    """The position bias in one pass, for all layers.

    `table` is that of :func:`position_bias`, [num_heads, 2 * reach - 1];
    `scratch` keeps the buffer of scores for the next pass.
    """

    def __init__(
        self,
        table: torch.Tensor,
        scratch: dict[str, torch.Tensor] | None = None,
    ):
        self.table = table
        self.reach = (table.shape[1] + 1) // 2
        self._scratch = {} if scratch is None else scratch

    def scores(
        self,
        gate: torch.Tensor,
        heads: slice,
        distance: int,
        keys: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Gated bias [B, H, Q, K] of a block of queries and keys, last key
        first.

        In this order the bias of a query is that of the query before, shifted
        by one: a view of the table. `gate` is [B, H, Q, 1], `distance` the
        number of frames from the first query to the last key, `keys` is K. The
        result is valid until the next call.
        """
        queries = gate.shape[2]
        first = self.reach - 1 - distance
        table = self.table[heads, first : first + queries + keys - 1]
        shifted = table.unfold(-1, keys, 1)
        if not fast_path(gate):
            # Without contiguous() the product has the view's layout, queries
            # side by side, and the attention copies it.
            return (gate * shifted).to(dtype).contiguous()
        shape = (len(gate), *shifted.shape)
        size = math.prod(shape)
        buffer = self._scratch.get("scores")
        if (
            buffer is None
            or buffer.numel() < size
            or buffer.dtype != dtype
            or buffer.is_inference()
        ):
            with torch.inference_mode(False):
                buffer = torch.empty(size, dtype=dtype, device=gate.device)
            self._scratch["scores"] = buffer
        return torch.mul(gate, shifted, out=buffer[:size].view(shape))


class RelativeAttention(nn.Module):
    """Self-attention with WavLM's gated relative position bias.

    Arguments
    ---------
    dim, num_heads : int
        Number of channels and heads.
    chunk : int, optional
        Frames per chunk; None when offline.
    window_size : int
        Causal only: frames that a chunk attends to, its own included.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        chunk: int | None = None,
        window_size: int = 512,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.chunk = chunk
        self.window_size = window_size
        head_dim = dim // num_heads
        self.qkv_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)
        self.gru_rel_pos_linear = nn.Linear(head_dim, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def reach(self, steps: int) -> int:
        """Reach of the position bias; the same for all chunks of a stream."""
        return steps if self.chunk is None else steps + self.window_size

    def forward(
        self,
        x: torch.Tensor,
        bias: PositionBias,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Normalised frames [B, T, dim] to frames [B, T, dim].

        `bias` has the reach of :meth:`reach`; `lengths` is int64 [B]; `state`
        has keys and values of earlier chunks.
        """
        steps = x.shape[1]
        query, key, value = (
            self._split_heads(y) for y in self.qkv_proj(x).chunk(3, dim=-1)
        )
        gate = self._gate(self._split_heads(x))
        output = key.new_empty(len(x), steps, self.num_heads, key.shape[3])
        streams = [(slice(None), None)] if state is None else state.streams()
        for rows, part in streams:
            # The last key first: see PositionBias.scores.
            if part is None:
                keys, values = key.flip(2), value.flip(2)
            else:
                keys = self._append(part, "key", key[rows])
                values = self._append(part, "value", value[rows])
            self._attend(
                query[rows],
                keys,
                values,
                gate[rows],
                bias,
                None if lengths is None else lengths[rows],
                output[rows],
                None if part is None else part.first(keys.shape[2] - steps),
            )
        return self.out_proj(output.flatten(2))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        gate: torch.Tensor,
        bias: PositionBias,
        lengths: torch.Tensor | None,
        output: torch.Tensor,
        first: torch.Tensor | None,
    ) -> None:
        """Attention of queries [B, H, T, D], written to `output`.

        Keys and values, the last first, include those of earlier steps, from
        `first` on.
        """
        steps, width = query.shape[2], key.shape[2]
        past = width - steps
        total = None
        if lengths is not None:
            total = (lengths + past)[:, None, None]
        elif first is not None or (
            self.chunk is not None and steps > self.chunk
        ):
            total = torch.full((1, 1, 1), width, device=key.device)
        if total is not None:
            order = torch.arange(width - 1, -1, -1, device=key.device)
        group, blocks = self._blocks(query, past, alike=total is None)
        for start, stop, low, high in blocks:
            kept = slice(width - high, width - low)
            seen = None
            if total is not None:
                seen = self._seen(
                    order[kept], past + start, stop - start, total, first
                )
            for head in range(0, self.num_heads, group):
                heads = slice(head, head + group)
                scores = bias.scores(
                    gate[:, heads, start:stop],
                    heads,
                    high - 1 - (past + start),
                    high - low,
                    query.dtype,
                )
                if seen is not None:
                    lowest = torch.finfo(scores.dtype).min
                    scores = scores.masked_fill_(~seen[:, None], lowest)
                part = F.scaled_dot_product_attention(
                    query[:, heads, start:stop],
                    key[:, heads, kept],
                    value[:, heads, kept],
                    attn_mask=scores,
                )
                output[:, start:stop, heads] = part.transpose(1, 2)

    def _append(
        self, state: StreamState, name: str, x: torch.Tensor
    ) -> torch.Tensor:
        """Keys or values after those of earlier chunks, the last first."""
        return state.append(
            name, x, self.window_size - 1, dim=2, newest_first=True
        )

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, dim] to [B, heads, T, head_dim]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _gate(self, x: torch.Tensor) -> torch.Tensor:
        """Gate of the position bias [B, heads, T, 1] from split frames."""
        y = self.gru_rel_pos_linear(x).unflatten(-1, (2, 4)).sum(-1)
        a, b = torch.sigmoid(y).chunk(2, dim=-1)
        return a * (b * self.gru_rel_pos_const - 1.0) + 2.0

    def _blocks(
        self, query: torch.Tensor, past: int, alike: bool
    ) -> tuple[int, list[tuple[int, int, int, int]]]:
        """Split the work: heads per call, and blocks of queries and keys.

        A block is (start, stop, low, high): queries start..stop of the input,
        keys low..high of all. `alike`: all queries see all keys of their block.
        """
        batch, _, steps, _ = query.shape
        width = past + steps
        if self.chunk is not None and alike:
            # One chunk of a stream.
            low = max(0, width - self.window_size)
            return self.num_heads, [(0, steps, low, width)]
        if self.chunk is not None:
            width = min(width, 2 * self.window_size)
        group, size = 4, SCORES
        if query.device.type != "cpu":
            # Few large calls instead.
            group, size = self.num_heads, 32 * SCORES
        block = max(1, size // (batch * group * width))
        if self.chunk is None:
            return group, [
                (start, min(start + block, steps), 0, width)
                for start in range(0, steps, block)
            ]
        block = min(block, self.window_size)
        block = max(1, block // self.chunk) * self.chunk
        blocks = []
        for start in range(0, steps, block):
            stop = min(start + block, steps)
            # The cut of a last chunk reaches further to the left.
            low = max(0, past + start - self.window_size)
            blocks.append((start, stop, low, past + stop))
        return group, blocks

    def _seen(
        self,
        keys: torch.Tensor,
        query: int,
        queries: int,
        total: torch.Tensor,
        first: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mask bool [B, Q, K]: the keys that each query from `query` on attends
        to.

        Utterances begin at `first` [B] and end at `total` [B, 1, 1].
        """
        if self.chunk is None:
            return keys < total
        # The first query of a block starts a chunk.
        index = torch.arange(queries, device=keys.device)
        end = query + (index // self.chunk + 1) * self.chunk
        end = torch.minimum(end[:, None], total)
        seen = (keys < end) & (keys >= end - self.window_size)
        return seen if first is None else seen & (keys >= first[:, None, None])
