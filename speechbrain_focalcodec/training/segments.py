"""Segments after feature extraction.

The frozen encoder sees the whole utterance, so that features have their full
context; the decoder is trained on a part of them.
"""

import torch

from speechbrain_focalcodec.modules.masking import zero_beyond

__all__ = ["crop_features", "random_starts", "take_windows"]


def crop_features(
    feats: torch.Tensor,
    frames: torch.Tensor,
    sig: torch.Tensor,
    lengths: torch.Tensor,
    start: torch.Tensor,
    segment_frames: int,
    hop: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crop features, and the waveform alike.

    What is shorter than a segment is padded with zeros.

    Arguments
    ---------
    feats : torch.Tensor
        Features [B, F, C].
    frames : torch.Tensor
        Their lengths, int64 [B].
    sig : torch.Tensor
        Waveform [B, T] at the decoder's output rate.
    lengths : torch.Tensor
        Its lengths in samples, int64 [B].
    start : torch.Tensor
        First frames of the segments, int64 [B].
    segment_frames : int
        Frames of a segment.
    hop : int
        Samples of the waveform to a frame.

    Returns
    -------
    feats : torch.Tensor
        Features [B, segment_frames, C].
    frames : torch.Tensor
        Their lengths, int64 [B].
    sig : torch.Tensor
        Waveform [B, segment_frames * hop].
    lengths : torch.Tensor
        Its lengths, int64 [B]; at most ``frames * hop``.

    Raises
    ------
    ValueError
        If `segment_frames` or `hop` is not positive.

    Example
    -------
    >>> frames = torch.tensor([9, 3])
    >>> feats = torch.arange(9.0).expand(2, 9)[..., None]
    >>> sig = torch.arange(18.0).expand(2, 18)
    >>> feats, frames, sig, lengths = crop_features(
    ...     feats, frames, sig, 2 * frames, torch.tensor([5, 0]), 4, 2
    ... )
    >>> feats.shape, frames, sig.shape, lengths
    (torch.Size([2, 4, 1]), tensor([4, 3]), torch.Size([2, 8]), tensor([8, 6]))
    >>> torch.equal(2 * feats[0, :, 0], sig[0, ::2])
    True
    """
    if segment_frames < 1 or hop < 1:
        raise ValueError(
            f"segment_frames ({segment_frames}) and hop ({hop}) must be "
            "positive"
        )
    frames = (frames - start).clamp(max=segment_frames)
    lengths = torch.minimum((lengths - start * hop).clamp(min=0), frames * hop)
    feats = take_windows(feats, start, segment_frames)
    sig = take_windows(sig, start * hop, segment_frames * hop)
    return (
        zero_beyond(feats, frames),
        frames,
        zero_beyond(sig, lengths),
        lengths,
    )


def random_starts(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Draw where parts of utterances begin that lie within them.

    By torch's own generator, which differs between processes and is kept in
    checkpoints.

    Arguments
    ---------
    lengths : torch.Tensor
        Steps of each utterance, int64 [B].
    size : int
        Steps of a part.

    Returns
    -------
    torch.Tensor
        First steps, int64 [B]; 0 where an utterance is no longer than a part.

    Example
    -------
    >>> starts = random_starts(torch.tensor([9, 3]), 4)
    >>> 0 <= starts[0] <= 5, starts[1].item()
    (tensor(True), 0)
    """
    choices = (lengths - size + 1).clamp(min=1)
    chance = torch.rand(len(lengths), dtype=torch.float64)
    chance = chance.to(lengths.device, non_blocking=True)
    return (chance * choices).long()


def take_windows(
    x: torch.Tensor, start: torch.Tensor, size: int
) -> torch.Tensor:
    """Take as many steps of each row, from its own start on.

    Arguments
    ---------
    x : torch.Tensor
        Rows [B, T, ...].
    start : torch.Tensor
        First steps, int64 [B].
    size : int
        Steps to take; zeros stand beyond the end.

    Returns
    -------
    torch.Tensor
        Windows [B, size, ...].

    Example
    -------
    >>> x = torch.arange(1, 7).reshape(2, 3)
    >>> take_windows(x, torch.tensor([0, 2]), 2)
    tensor([[1, 2],
            [6, 0]])
    """
    steps = start[:, None] + torch.arange(size, device=x.device)
    rows = torch.arange(len(x), device=x.device)[:, None]
    windows = x[rows, steps.clamp(max=x.shape[1] - 1)]
    return zero_beyond(windows, (x.shape[1] - start).clamp(min=0))
