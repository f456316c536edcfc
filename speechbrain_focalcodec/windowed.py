"""Encode and decode any length in bounded memory, window by window.

What fits one window is done in one pass. Longer utterances:

* Offline models encode overlapping windows. A token comes from a window that
  sees some seconds around it, which is near to a single pass, not equal:
  attention and the means over time see one window.
* Offline models decode windows exactly. All is local but the means over time
  in the focal blocks; short passes compute these first, block by block.
* Causal models encode and decode slices that carry their state, exactly.

Batches and streams from disk are cut and put together by the same code.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.modules.masking import full_lengths
from speechbrain_focalcodec.modules.means import MeanWanted, TimeMeans
from speechbrain_focalcodec.windows import (
    Sizes,
    Window,
    decode_sizes,
    encode_sizes,
)

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["decode", "decode_stream", "encode", "encode_stream"]

# Part of an utterance: (its place in the batch, start, stop) -> [stop - start].
Read = Callable[[int, int, int], torch.Tensor]
# What was made of it: (its place in the batch, where it starts, [steps]).
Part = tuple[int, int, torch.Tensor]


# One pass: tensor and absolute lengths to tensor and absolute lengths


def _encode_once(
    codec: "FocalCodec",
    sig: torch.Tensor,
    lengths: torch.Tensor | None = None,
    state: StreamState | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveform to tokens."""
    return _chain(
        sig,
        lengths,
        partial(codec.sig_to_feats, state=state),
        partial(codec.feats_to_lats, state=state),
        codec.lats_to_toks,
    )


def _decode_once(
    codec: "FocalCodec",
    toks: torch.Tensor,
    lengths: torch.Tensor | None = None,
    state: StreamState | None = None,
    means: TimeMeans | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens to waveform, of windows when `means` are given."""
    return _chain(
        toks,
        lengths,
        codec.toks_to_codes,
        partial(codec.codes_to_qfeats, state=state if means is None else means),
        partial(codec.feats_to_sig, state=state),
    )


def _chain(
    x: torch.Tensor, lengths: torch.Tensor | None, *stages: Callable[..., Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stages of a codec one after the other."""
    for stage in stages:
        if lengths is None:
            x = stage(x)
        else:
            x, lengths = stage(x, lengths)
    return x, full_lengths(x) if lengths is None else lengths


# Part by part: what both the batches and the streams below are made of


def _groups(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _pad(
    pieces: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Put pieces into one batch; lengths only when they differ."""
    batch = pad_sequence(pieces, batch_first=True)
    sizes = [len(piece) for piece in pieces]
    if len(set(sizes)) == 1:
        return batch, None
    # A row that ended in a slice before gets one step, which is dropped.
    return batch, torch.tensor(sizes, device=batch.device).clamp(min=1)


def _sliced(
    once: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    codec: "FocalCodec",
    read: Read,
    lengths: Sequence[int],
    size: int,
    batch_size: int,
) -> Iterator[Part]:
    """Causal: slices of `size` steps with carried state.

    Yields (row, number of the slice, what it gives).
    """
    for rows in _groups(range(len(lengths)), batch_size):
        state = StreamState()
        for start in range(0, max(lengths[row] for row in rows), size):
            # Rows that have ended read nothing.
            pieces = [
                read(row, min(start, end), min(start + size, end))
                for row, end in ((row, lengths[row]) for row in rows)
            ]
            out, out_lengths = once(codec, *_pad(pieces), state)
            for i, row in enumerate(rows):
                if start < lengths[row]:
                    yield row, start // size, out[i, : int(out_lengths[i])]


def _encoded(
    codec: "FocalCodec",
    read: Read,
    lengths: Sequence[int],
    sizes: Sizes,
    batch_size: int,
) -> Iterator[Part]:
    """Tokens, part by part: (row, first token, tokens)."""
    hop = codec.hop_length
    if codec.causal:
        for row, i, toks in _sliced(
            _encode_once, codec, read, lengths, sizes.size * hop, batch_size
        ):
            yield row, i * sizes.size, toks
        return
    num_tokens = [codec.num_tokens(n) for n in lengths]
    for group in _groups(sizes.plan(num_tokens), batch_size):
        pieces = []
        for window in group:
            stop = lengths[window.row]
            if window.stop < num_tokens[window.row]:
                stop = window.stop * hop + codec.encoder.overhang
            pieces.append(read(window.row, window.start * hop, stop))
        toks, _ = _encode_once(codec, *_pad(pieces))
        for i, window in enumerate(group):
            yield window.row, window.keep_start, toks[i, window.kept()]


def _decoded(
    codec: "FocalCodec",
    read: Read,
    lengths: Sequence[int],
    sizes: Sizes,
    batch_size: int,
) -> Iterator[Part]:
    """Waveform, part by part: (row, first sample, samples)."""
    hop = codec.output_hop_length
    if codec.causal:
        for row, i, sig in _sliced(
            _decode_once, codec, read, lengths, sizes.size, batch_size
        ):
            yield row, i * sizes.size * hop, sig
        return
    groups = list(_groups(sizes.plan(lengths), batch_size))
    means: dict[str, torch.Tensor] = {}
    if not codec.config.decompressor_config.causal:
        for _ in codec.decompressor.layers:
            _add_mean(codec, read, lengths, groups, means)
    for group in groups:
        toks, steps = _read_toks(read, group)
        sig, _ = _decode_once(codec, toks, steps, None, _rows(means, group))
        for i, window in enumerate(group):
            yield window.row, window.keep_start * hop, sig[i, window.kept(hop)]


def _add_mean(
    codec: "FocalCodec",
    read: Read,
    lengths: Sequence[int],
    groups: Sequence[Sequence[Window]],
    means: dict[str, torch.Tensor],
) -> None:
    """Compute the first mean that is not in `means` yet, for all utterances.

    Each window stops where that mean is wanted.
    """
    sums: torch.Tensor | None = None
    for group in groups:
        toks, steps = _read_toks(read, group)
        try:
            _decode_once(codec, toks, steps, None, _rows(means, group))
        except MeanWanted as wanted:
            name, frames = wanted.name, wanted.frames
        factor = frames.shape[1] // toks.shape[1]
        if sums is None:
            sums = frames.new_zeros(
                len(lengths), frames.shape[2], dtype=torch.float32
            )
        for i, window in enumerate(group):
            # In float32, as a mean is computed: half floats would overflow.
            kept = frames[i, window.kept(factor)].sum(0, dtype=torch.float32)
            sums[window.row] += kept
    assert sums is not None
    steps = torch.tensor(lengths, device=sums.device) * factor
    means[name] = sums / steps[:, None]


def _read_toks(
    read: Read, group: Sequence[Window]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return _pad([read(w.row, w.start, w.stop) for w in group])


def _rows(means: dict[str, torch.Tensor], group: Sequence[Window]) -> TimeMeans:
    """The means of the utterance of each window."""
    rows = [window.row for window in group]
    return TimeMeans({name: mean[rows] for name, mean in means.items()})


def _put_together(
    parts: Iterator[Part], lengths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """All parts in one batch, 0 beyond each length, and the lengths."""
    first = next(parts)
    whole = first[2].new_zeros(len(lengths), max(lengths))
    for row, start, part in chain([first], parts):
        whole[row, start : start + len(part)] = part
    return whole, torch.tensor(lengths, device=whole.device)


# What the codec's methods do


def _check_batch_size(batch_size: Any, default: int) -> int:
    if batch_size is None:
        return default
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise ValueError(f"batch_size must be an integer, got {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def encode(
    codec: "FocalCodec",
    sig: torch.Tensor,
    lengths: torch.Tensor | None,
    window: float | None,
    context: float,
    batch_size: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`FocalCodec.encode`, which checks shapes.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    sig, lengths, window, context, batch_size
        Of :meth:`FocalCodec.encode`.

    Returns
    -------
    toks : torch.Tensor
        Tokens, int64 [B, N].
    tok_lengths : torch.Tensor
        Tokens, int64 [B].
    """
    sizes = encode_sizes(codec, window, context)
    batch_size = _check_batch_size(batch_size, len(sig))
    samples = _whole_numbers(sig, lengths)
    num_tokens = [codec.num_tokens(n) for n in samples]
    if len(sig) <= batch_size and max(num_tokens) <= sizes.size:
        if codec.num_tokens(sig.shape[1]) > sizes.size:
            sig = sig[:, : max(samples)]
        return _encode_once(codec, sig, lengths)
    parts = _encoded(
        codec, lambda row, i, j: sig[row, i:j], samples, sizes, batch_size
    )
    return _put_together(parts, num_tokens)


def decode(
    codec: "FocalCodec",
    toks: torch.Tensor,
    lengths: torch.Tensor | None,
    window: float | None,
    batch_size: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`FocalCodec.decode`, which checks shapes and tokens.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    toks, lengths, window, batch_size
        Of :meth:`FocalCodec.decode`.

    Returns
    -------
    sig : torch.Tensor
        Waveform [B, T].
    sig_lengths : torch.Tensor
        Samples, int64 [B].
    """
    sizes = decode_sizes(codec, window)
    batch_size = _check_batch_size(batch_size, len(toks))
    num_tokens = _whole_numbers(toks, lengths)
    if len(toks) <= batch_size and max(num_tokens) <= sizes.size:
        if toks.shape[1] > sizes.size:
            toks = toks[:, : max(num_tokens)]
        return _decode_once(codec, toks, lengths)
    parts = _decoded(
        codec, lambda row, i, j: toks[row, i:j], num_tokens, sizes, batch_size
    )
    samples = [n * codec.output_hop_length for n in num_tokens]
    return _put_together(parts, samples)


def _whole_numbers(x: torch.Tensor, lengths: torch.Tensor | None) -> list[int]:
    if lengths is None:
        return [x.shape[1]] * len(x)
    return lengths.tolist()


@torch.no_grad()
def encode_stream(
    codec: "FocalCodec",
    read: Callable[[int, int], torch.Tensor],
    num_samples: int,
    window: float | None,
    context: float,
    batch_size: int,
) -> torch.Tensor:
    """See :meth:`FocalCodec.encode_stream`.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    read, num_samples, window, context, batch_size
        Of :meth:`FocalCodec.encode_stream`.

    Returns
    -------
    torch.Tensor
        Tokens, int64 [N], on the CPU.
    """
    sizes = encode_sizes(codec, window, context)
    batch_size = _check_batch_size(batch_size, 1)
    if num_samples < 1:
        raise ValueError(
            f"num_samples must be at least 1, got {num_samples}: there is "
            "nothing to encode"
        )
    model = next(codec.parameters())

    def read_checked(row: int, start: int, stop: int) -> torch.Tensor:
        sig = read(start, stop)
        if sig.shape != (stop - start,):
            raise ValueError(
                f"read({start}, {stop}) must give a tensor "
                f"[{stop - start}], got {list(sig.shape)}"
            )
        return sig.to(model)

    parts = _encoded(codec, read_checked, [num_samples], sizes, batch_size)
    toks, _ = _put_together(parts, [codec.num_tokens(num_samples)])
    return toks[0].cpu()


def decode_stream(
    codec: "FocalCodec",
    toks: torch.Tensor,
    window: float | None,
    batch_size: int,
) -> Iterator[torch.Tensor]:
    """See :meth:`FocalCodec.decode_stream`, which checks the tokens.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    toks, window, batch_size
        Of :meth:`FocalCodec.decode_stream`.

    Returns
    -------
    iterator of torch.Tensor
        Pieces of the waveform, in order, on the CPU.
    """
    sizes = decode_sizes(codec, window)
    batch_size = _check_batch_size(batch_size, 1)
    device = next(codec.parameters()).device
    parts = _decoded(
        codec,
        lambda row, i, j: toks[i:j].to(device),
        [len(toks)],
        sizes,
        batch_size,
    )
    return _without_grad(parts)


@torch.no_grad()
def _without_grad(parts: Iterator[Part]) -> Iterator[torch.Tensor]:
    for _, _, part in parts:
        yield part.cpu()
