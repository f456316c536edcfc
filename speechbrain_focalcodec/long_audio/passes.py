"""Runs passes over long utterances, window by window.

A pass sees some frames around a frame, and may need one mean over the whole
utterance, which short windows compute first. The output of a pass is stored in
a :class:`~speechbrain_focalcodec.long_audio.spool.Spool` for the next one:
nothing runs twice, and memory is bounded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.long_audio.spool import Spool
from speechbrain_focalcodec.long_audio.windows import Sizes, Window
from speechbrain_focalcodec.modules.means import MeanNeeded, TimeMeans

__all__ = ["Part", "Pass", "Read", "groups_of", "pad", "run_passes"]

# Reads a part of an utterance: (row, start, stop) -> [stop - start].
Read = Callable[[int, int, int], torch.Tensor]
# The next part of an utterance's output: (row, [steps, ...]).
Part = tuple[int, torch.Tensor]


def _whole_steps(length: int) -> int:
    return length


@dataclass(frozen=True)
class Pass:
    """A part of a codec that runs over utterances window by window.

    Arguments
    ---------
    run : callable
        (windows [B, T, ...], their lengths or None if all are equal, a
        :class:`TimeMeans` or None) -> output [B, T', ...].
    sizes : Sizes
        The windows, in steps.
    hop_in, hop_out : int
        Input and output length per step.
    overhang : int
        Input that a step needs beyond its own hop.
    count : callable
        Length of an utterance's input -> number of steps.
    has_mean : bool
        Whether `run` needs a mean over time.

    Example
    -------
    >>> double = Pass(lambda x, lengths, means: 2 * x, Sizes(4, 1, 1))
    >>> sig = torch.arange(7.0)
    >>> parts = run_passes([double], lambda row, i, j: sig[i:j], [7], 1)
    >>> [part.tolist() for _, part in parts]
    [[0.0, 2.0, 4.0], [6.0, 8.0], [10.0, 12.0]]
    """

    run: Callable[..., torch.Tensor]
    sizes: Sizes
    hop_in: int = 1
    hop_out: int = 1
    overhang: int = 0
    count: Callable[[int], int] = _whole_steps
    has_mean: bool = False


def groups_of(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Groups of up to `size` consecutive items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def pad(pieces: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pad tensors [T, ...] to a batch [B, T, ...], and their lengths int64 [B].

    The lengths are None if all are equal.
    """
    batch = pad_sequence(pieces, batch_first=True)
    sizes = [len(piece) for piece in pieces]
    if len(set(sizes)) == 1:
        return batch, None
    # A row that ended in an earlier slice has one step, which is dropped.
    return batch, torch.tensor(sizes, device=batch.device).clamp(min=1)


def run_passes(
    passes: Sequence[Pass], read: Read, lengths: Sequence[int], batch_size: int
) -> Iterator[Part]:
    """Run passes in order; yield the parts of the last one's output.

    `read(row, start, stop)` returns a part of the first pass's input, whose
    `lengths` are those of each utterance. Yields the row and the next output of
    an utterance, one utterance after another. Raises FocalCodecError if the
    temporary folder cannot hold the output of a pass.
    """
    spools: list[Spool] = []
    try:
        for step in passes[:-1]:
            steps = [step.count(num) for num in lengths]
            spools.append(Spool([num * step.hop_out for num in steps]))
            for _, part in _run_pass(step, read, lengths, batch_size):
                spools[-1].append(part)
            if len(spools) > 1:
                spools.pop(0).close()
            read, lengths = spools[0].read, spools[0].lengths
        yield from _run_pass(passes[-1], read, lengths, batch_size)
    finally:
        for spool in spools:
            spool.close()


def _run_pass(
    step: Pass, read: Read, lengths: Sequence[int], batch_size: int
) -> Iterator[Part]:
    steps = [step.count(num) for num in lengths]
    groups = list(groups_of(step.sizes.plan(steps), batch_size))

    def read_group(group: Sequence[Window]) -> Any:
        pieces = []
        for window in group:
            stop = lengths[window.row]
            if window.stop < steps[window.row]:
                stop = window.stop * step.hop_in + step.overhang
            pieces.append(read(window.row, window.start * step.hop_in, stop))
        return pad(pieces)

    means: torch.Tensor | None = None
    if step.has_mean:
        means = _mean(step, read_group, groups, steps)
    for group in groups:
        rows = [window.row for window in group]
        mean = None if means is None else TimeMeans(means[rows])
        y = step.run(*read_group(group), mean)
        for i, window in enumerate(group):
            yield window.row, y[i, window.kept(step.hop_out)]


def _mean(
    step: Pass,
    read_group: Callable[[Sequence[Window]], Any],
    groups: Sequence[Sequence[Window]],
    steps: Sequence[int],
) -> torch.Tensor:
    """Mean over each utterance [B, C] for a pass.

    Each window runs only until the mean is needed.
    """
    sums: list[Any] = [0.0] * len(steps)
    for group in groups:
        try:
            step.run(*read_group(group), TimeMeans())
        except MeanNeeded as needed:
            frames = needed.frames
        for i, window in enumerate(group):
            # A sum in half precision would overflow.
            kept = frames[i, window.kept()]
            sums[window.row] += kept.sum(0, dtype=torch.float32)
    total = torch.stack(sums)
    return total / torch.tensor(steps, device=total.device)[:, None]
