"""Encodes and decodes audio of any length in bounded memory, in windows.

Audio that fits one window takes one pass. Longer utterances:

* Offline models run the passes of
  :mod:`speechbrain_focalcodec.long_audio.schedule`. Decoding equals a single
  pass; so does encoding, except for WavLM's attention, which sees only some
  seconds around a window.
* Causal models encode and decode slices with carried state, exactly.

Batches, and streams from disk, use the same code. Only a single pass has
gradients.
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
    """How a codec encodes, or decodes, with a given window.

    Arguments
    ---------
    stages : list of Stage
        The stages, in order.
    count : callable
        Length of the input -> length of the output.
    slice_size : int
        Causal models: input steps per slice.
    passes : list of Pass
        Offline models: the same stages as passes over long utterances.
    """

    stages: list[Stage]
    count: Callable[[int], int]
    slice_size: int = 0
    passes: list[Pass] = field(default_factory=list)

    def fits(self, length: int) -> bool:
        """Whether an input of this length takes one pass."""
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
        """Run a batch in a single pass."""
        y: Any = run_stages(self.stages, x, lengths, state)
        return (y, full_lengths(y)) if lengths is None else y


def _encoding(
    codec: Stages, window: float | None, context: float, to_toks: bool = True
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
    """Raise ValueError if a codec cannot run with a window and context (s)."""
    _encoding(codec, window, context)
    _decoding(codec, window)


def _slice_size(codec: Stages, window: float | None) -> int:
    """Tokens per slice of a causal model: whole chunks."""
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
    """Run a batch: in one pass if it fits, else in parts."""
    batch_size = _check_batch_size(batch_size, len(x))
    numbers = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
    if len(x) <= batch_size and direction.fits(max(numbers)):
        if not direction.fits(x.shape[1]):
            x = x[:, : max(numbers)]
        return direction.once(x, lengths)
    parts = _parts(
        direction, lambda row, i, j: x[row, i:j], numbers, batch_size
    )
    return _join_parts(parts, [direction.count(num) for num in numbers])


@torch.no_grad()
def _parts(
    direction: _Direction, read: Read, lengths: Sequence[int], batch_size: int
) -> Iterator[Part]:
    """Output of a batch in parts; those of each utterance in order."""
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
    """Causal models: slices with carried state."""
    size = direction.slice_size
    for rows in groups_of(range(len(lengths)), batch_size):
        state = StreamState()
        for start in range(0, max(lengths[row] for row in rows), size):
            # Rows past their end read nothing.
            pieces = [
                read(row, min(start, end), min(start + size, end))
                for row, end in ((row, lengths[row]) for row in rows)
            ]
            out, out_lengths = direction.once(*pad(pieces), state)
            for i, row in enumerate(rows):
                if start < lengths[row]:
                    yield row, out[i, : int(out_lengths[i])]


def _join_parts(
    parts: Iterator[Part], lengths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join parts to one batch, 0 beyond each length; with the lengths."""
    first = next(parts)
    whole = first[1].new_zeros(len(lengths), max(lengths))
    done = [0] * len(lengths)
    for row, part in chain([first], parts):
        whole[row, done[row] : done[row] + len(part)] = part
        done[row] += len(part)
    return whole, torch.tensor(lengths, device=whole.device)


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
    """See :meth:`FocalCodec.encode`, which checks shapes."""
    return _run(_encoding(codec, window, context), sig, lengths, batch_size)


def decode(
    codec: Stages,
    toks: torch.Tensor,
    lengths: torch.Tensor | None,
    window: float | None,
    batch_size: int | None,
    convert: Convert | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`FocalCodec.decode`, which checks shapes and tokens."""
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
    """See :meth:`FocalCodec.encode_stream`."""
    direction = _encoding(codec, window, context)
    parts = _read_parts(codec, read, num_samples, direction, batch_size)
    toks, _ = _join_parts(parts, [direction.count(num_samples)])
    return toks[0].cpu()


def num_frames(codec: Stages, num_samples: int) -> int:
    """Number of feature frames of a waveform."""
    return int(codec.encoder.output_lengths(torch.tensor(num_samples)))


def feats_stream(
    codec: Stages,
    read: Callable[[int, int], torch.Tensor],
    num_samples: int,
    window: float | None,
    context: float,
    batch_size: int,
) -> Iterator[torch.Tensor]:
    """Waveform to features, piece by piece: frames [T, C], on the CPU.

    Arguments as for :meth:`FocalCodec.encode_stream`.
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
    """Output of one utterance that is read in pieces."""
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
                f"read({start}, {stop}) must return a tensor "
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
    """See :meth:`FocalCodec.decode_stream`, which checks the tokens."""
    return _stream(codec, toks, _decoding(codec, window, convert), batch_size)


def qfeats_stream(
    codec: Stages, toks: torch.Tensor, window: float | None, batch_size: int
) -> Iterator[torch.Tensor]:
    """Tokens, int64 [N], to quantized features, piece by piece.

    Yields the frames [T, C] of a single pass, on the CPU. Arguments as for
    :meth:`FocalCodec.decode_stream`.
    """
    direction = _decoding(codec, window, to_sig=False)
    return _stream(codec, toks, direction, batch_size)


def _stream(
    codec: Stages, toks: torch.Tensor, direction: _Direction, batch_size: int
) -> Iterator[torch.Tensor]:
    """Output for one utterance's tokens, piece by piece, on the CPU."""
    batch_size = _check_batch_size(batch_size, 1)
    device = codec.device
    parts = _parts(
        direction,
        lambda row, i, j: toks[i:j].to(device),
        [len(toks)],
        batch_size,
    )
    return (part.cpu() for _, part in parts)
