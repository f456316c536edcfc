"""Segments of features and of waveforms.

The frozen encoder sees the whole utterance, so that features have full context;
the decoder is trained on a segment of them.
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
    """Crop features and waveforms to the same segments, padded with zeros.

    Takes features [B, F, C] and ``frames``, waveforms [B, T] at the output rate
    and ``lengths``, and the segments' first frames ``start``, all int64 [B].
    Returns features [B, segment_frames, C] and frames, waveforms
    [B, segment_frames * hop] and lengths.
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
    """First step, int64 [B], of a random window within each utterance.

    Drawn by torch's global generator; 0 if an utterance, with length int64 [B],
    is not longer than the window.
    """
    choices = (lengths - size + 1).clamp(min=1)
    chance = torch.rand(len(lengths), dtype=torch.float64)
    chance = chance.to(lengths.device, non_blocking=True)
    return (chance * choices).long()


def take_windows(
    x: torch.Tensor, start: torch.Tensor, size: int
) -> torch.Tensor:
    """Windows [B, size, ...] of x [B, T, ...] from each start, int64 [B].

    Steps beyond the end are zero.
    """
    steps = start[:, None] + torch.arange(size, device=x.device)
    rows = torch.arange(len(x), device=x.device)[:, None]
    windows = x[rows, steps.clamp(max=x.shape[1] - 1)]
    return zero_beyond(windows, (x.shape[1] - start).clamp(min=0))
