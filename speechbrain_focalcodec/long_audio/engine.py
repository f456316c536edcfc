"""Encode and decode any length in bounded memory, window by window.

What fits one window is done in one pass. Longer utterances:

* Offline models take the passes of
  :mod:`speechbrain_focalcodec.long_audio.schedule`. Decoding equals a single
  pass; so does encoding, but for the reach of WavLM's attention: a window
  sees some seconds around what is kept.
* Causal models encode and decode slices that carry their state, exactly.

Batches and streams from disk are cut and put together by the same code. More
than one pass keeps no gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch

from speechbrain_focalcodec.audio.gate import check_sig
from speechbrain_focalcodec.long_audio.passes import (
    Part,
    Pass,
    Read,
    groups_of,
    pad,
    run_passes,
)
from speechbrain_focalcodec.long_audio.schedule import (
    decode_passes,
    encode_passes,
)
from speechbrain_focalcodec.long_audio.windows import WHOLE, count_steps
from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.modules.masking import full_lengths
from speechbrain_focalcodec.stages import Convert, Stage, Stages, run_stages

__all__ = [
    "check_windows",
    "decode",
    "decode_stream",
    "encode",
    "encode_stream",
    "feats_stream",
    "num_frames",
    "qfeats_stream",
]


@dataclass(frozen=True)
class _Direction:
    """How a codec encodes, or decodes, with windows of some length.

    Arguments
    ---------
    stages : list of Stage
        What runs, in this order.
    count : callable
        Length of the input -> length of the output.
    slice_size : int
        Causal models: input steps of a slice.
    passes : list of Pass
        Offline models: the same stages cut into passes over a long utterance.
    """

    stages: list[Stage]
    count: Callable[[int], int]
    slice_size: int = 0
    passes: list[Pass] = field(default_factory=list)

    def fits(self, length: int) -> bool:
        """Whether this much input is done in one pass."""
        if not self.passes:
            return length <= self.slice_size
        first = self.passes[0]
        return first.count(length) <= first.sizes.size

    def once(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A single pass over a batch."""
        y: Any = run_stages(self.stages, x, lengths, state)
        return (y, full_lengths(y)) if lengths is None else y


def _encoding(
    codec: Stages,
    window: float | None,
    context: float,
    to_toks: bool = True,
) -> _Direction:
    stages = codec.encoding() if to_toks else codec.encoding()[:1]
    count = codec.num_tokens if to_toks else partial(num_frames, codec)
    if codec.causal:
        count_steps("context", context, 1.0)
        size = _slice_size(codec, window) * codec.hop_length
        return _Direction(stages, count, size)
    passes = encode_passes(codec, window, context)
    return _Direction(stages, count, passes=passes if to_toks else passes[:1])


def _decoding(
    codec: Stages,
    window: float | None,
    convert: Convert | None = None,
    to_sig: bool = True,
) -> _Direction:
    stages = codec.decoding(convert)
    hop = codec.output_hop_length
    if not to_sig:
        stages = stages[:-1]
        hop //= codec.decoder.hop_length
    if codec.causal:
        size = _slice_size(codec, window)
        return _Direction(stages, lambda num: num * hop, size)
    passes = decode_passes(codec, window, convert, to_sig)
    return _Direction(stages, lambda num: num * hop, passes=passes)


def check_windows(codec: Stages, window: float | None, context: float) -> None:
    """Refuse lengths of windows that a codec cannot run with.

    Arguments
    ---------
    codec : Stages
        The model.
    window, context : float
        See :meth:`FocalCodec.encode`.

    Raises
    ------
    ValueError
        If an argument is no number of seconds, or the window is too short.
    """
    _encoding(codec, window, context)
    _decoding(codec, window)


def _slice_size(codec: Stages, window: float | None) -> int:
    """Tokens of a causal model's slices: whole chunks."""
    if window is None:
        return WHOLE
    assert codec.chunk_length is not None
    unit = codec.chunk_length // codec.hop_length
    size = int(count_steps("window", window, codec.token_rate))
    return max(size // unit, 1) * unit


def _run(
    direction: _Direction,
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    batch_size: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch: in one pass if it fits, else part by part."""
    batch_size = _check_batch_size(batch_size, len(x))
    numbers = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
    if len(x) <= batch_size and direction.fits(max(numbers)):
        if not direction.fits(x.shape[1]):
            x = x[:, : max(numbers)]
        return direction.once(x, lengths)
    parts = _parts(
        direction, lambda row, i, j: x[row, i:j], numbers, batch_size
    )
    return _put_together(parts, [direction.count(num) for num in numbers])


@torch.no_grad()
def _parts(
    direction: _Direction, read: Read, lengths: Sequence[int], batch_size: int
) -> Iterator[Part]:
    """What a batch gives, part by part; each utterance's in order."""
    if not direction.passes:
        yield from _sliced(direction, read, lengths, batch_size)
        return
    rows = range(len(lengths))
    short = [row for row in rows if direction.fits(lengths[row])]
    for group in groups_of(short, batch_size):
        pieces = [read(row, 0, lengths[row]) for row in group]
        out, out_lengths = direction.once(*pad(pieces))
        for i, row in enumerate(group):
            yield row, out[i, : int(out_lengths[i])]
    long = [row for row in rows if not direction.fits(lengths[row])]
    if long:
        for i, part in run_passes(
            direction.passes,
            lambda i, start, stop: read(long[i], start, stop),
            [lengths[row] for row in long],
            batch_size,
        ):
            yield long[i], part


def _sliced(
    direction: _Direction, read: Read, lengths: Sequence[int], batch_size: int
) -> Iterator[Part]:
    """Causal: slices with carried state."""
    size = direction.slice_size
    for rows in groups_of(range(len(lengths)), batch_size):
        state = StreamState()
        for start in range(0, max(lengths[row] for row in rows), size):
            # Rows that have ended read nothing.
            pieces = [
                read(row, min(start, end), min(start + size, end))
                for row, end in ((row, lengths[row]) for row in rows)
            ]
            out, out_lengths = direction.once(*pad(pieces), state)
            for i, row in enumerate(rows):
                if start < lengths[row]:
                    yield row, out[i, : int(out_lengths[i])]


def _put_together(
    parts: Iterator[Part], lengths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """All parts in one batch, 0 beyond each length, and the lengths."""
    first = next(parts)
    whole = first[1].new_zeros(len(lengths), max(lengths))
    done = [0] * len(lengths)
    for row, part in chain([first], parts):
        whole[row, done[row] : done[row] + len(part)] = part
        done[row] += len(part)
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
    codec: Stages,
    sig: torch.Tensor,
    lengths: torch.Tensor | None,
    window: float | None,
    context: float,
    batch_size: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`FocalCodec.encode`, which checks shapes.

    Arguments
    ---------
    codec : Stages
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
    return _run(_encoding(codec, window, context), sig, lengths, batch_size)


def decode(
    codec: Stages,
    toks: torch.Tensor,
    lengths: torch.Tensor | None,
    window: float | None,
    batch_size: int | None,
    convert: Convert | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`FocalCodec.decode`, which checks shapes and tokens.

    Arguments
    ---------
    codec : Stages
        The model.
    toks, lengths, window, batch_size, convert
        Of :meth:`FocalCodec.decode`.

    Returns
    -------
    sig : torch.Tensor
        Waveform [B, T].
    sig_lengths : torch.Tensor
        Samples, int64 [B].
    """
    direction = _decoding(codec, window, convert)
    return _run(direction, toks, lengths, batch_size)


def encode_stream(
    codec: Stages,
    read: Callable[[int, int], torch.Tensor],
    num_samples: int,
    window: float | None,
    context: float,
    batch_size: int,
) -> torch.Tensor:
    """See :meth:`FocalCodec.encode_stream`.

    Arguments
    ---------
    codec : Stages
        The model.
    read, num_samples, window, context, batch_size
        Of :meth:`FocalCodec.encode_stream`.

    Returns
    -------
    torch.Tensor
        Tokens, int64 [N], on the CPU.
    """
    direction = _encoding(codec, window, context)
    parts = _read_parts(codec, read, num_samples, direction, batch_size)
    toks, _ = _put_together(parts, [direction.count(num_samples)])
    return toks[0].cpu()


def num_frames(codec: Stages, num_samples: int) -> int:
    """Feature frames that a waveform gives.

    Arguments
    ---------
    codec : Stages
        The model.
    num_samples : int
        Samples at the input's rate.

    Returns
    -------
    int
        Frames.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> num_frames(codec, 16000)
    50
    """
    return int(codec.encoder.output_lengths(torch.tensor(num_samples)))


def feats_stream(
    codec: Stages,
    read: Callable[[int, int], torch.Tensor],
    num_samples: int,
    window: float | None,
    context: float,
    batch_size: int,
) -> Iterator[torch.Tensor]:
    """Waveform to features, piece by piece.

    Arguments
    ---------
    codec : Stages
        The model.
    read, num_samples, window, context, batch_size
        Of :meth:`FocalCodec.encode_stream`.

    Returns
    -------
    iterator of torch.Tensor
        Consecutive frames [T, C], on the CPU.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> read = lambda start, stop: torch.zeros(stop - start)
    >>> [list(x.shape) for x in feats_stream(codec, read, 160000, 6, 1, 1)]
    [[250, 80], [250, 80]]
    """
    direction = _encoding(codec, window, context, to_toks=False)
    parts = _read_parts(codec, read, num_samples, direction, batch_size)
    return (part.cpu() for _, part in parts)


def _read_parts(
    codec: Stages,
    read: Callable[[int, int], torch.Tensor],
    num_samples: int,
    direction: _Direction,
    batch_size: int,
) -> Iterator[Part]:
    """What one utterance gives that is read part by part."""
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
        if stop > start:
            check_sig(sig, f"read({start}, {stop})", ndim=1)
        return sig.to(model.device)

    return _parts(direction, read_checked, [num_samples], batch_size)


def decode_stream(
    codec: Stages,
    toks: torch.Tensor,
    window: float | None,
    batch_size: int,
    convert: Convert | None = None,
) -> Iterator[torch.Tensor]:
    """See :meth:`FocalCodec.decode_stream`, which checks the tokens.

    Arguments
    ---------
    codec : Stages
        The model.
    toks, window, batch_size, convert
        Of :meth:`FocalCodec.decode_stream`.

    Returns
    -------
    iterator of torch.Tensor
        Pieces of the waveform, in order, on the CPU.
    """
    return _stream(codec, toks, _decoding(codec, window, convert), batch_size)


def qfeats_stream(
    codec: Stages,
    toks: torch.Tensor,
    window: float | None,
    batch_size: int,
) -> Iterator[torch.Tensor]:
    """Tokens to quantized features, piece by piece.

    Arguments
    ---------
    codec : Stages
        The model.
    toks : torch.Tensor
        Tokens of the model, int64 [N].
    window, batch_size
        Of :meth:`FocalCodec.decode_stream`.

    Returns
    -------
    iterator of torch.Tensor
        Consecutive frames [T, C] of what a single pass gives, on the CPU.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> toks = torch.zeros(500, dtype=torch.int64)
    >>> [list(x.shape) for x in qfeats_stream(codec, toks, 6, 1)]
    [[250, 80], [250, 80]]
    """
    direction = _decoding(codec, window, to_sig=False)
    return _stream(codec, toks, direction, batch_size)


def _stream(
    codec: Stages, toks: torch.Tensor, direction: _Direction, batch_size: int
) -> Iterator[torch.Tensor]:
    """What one utterance's tokens give, piece by piece, on the CPU."""
    batch_size = _check_batch_size(batch_size, 1)
    device = codec.device
    parts = _parts(
        direction,
        lambda row, i, j: toks[i:j].to(device),
        [len(toks)],
        batch_size,
    )
    return (part.cpu() for _, part in parts)
