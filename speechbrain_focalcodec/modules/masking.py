"""Absolute lengths and padding.

A padded batch must yield the same output for each utterance as the utterance
alone. Modules that look to the right, or average over time, call
:func:`zero_beyond` on their input; the stages of the codec call it on their
output.
"""

import torch

from speechbrain_focalcodec.modules.derived import fast_path

__all__ = ["check_lengths", "full_lengths", "length_mask", "zero_beyond"]


def length_mask(lengths: torch.Tensor, max_len: int) -> torch.Tensor:
    """Mask bool [B, max_len], True within the lengths (int64 [B])."""
    steps = torch.arange(max_len, device=lengths.device)
    return steps < lengths[:, None]


def zero_beyond(
    x: torch.Tensor, lengths: torch.Tensor | None, in_place: bool = False
) -> torch.Tensor:
    """Set the padding of a batch [B, T, ...] to zero.

    `lengths` is int64 [B]; None returns `x` as it is. `in_place` allows to
    write to `x`, if no gradient is recorded.
    """
    if lengths is None:
        return x
    if in_place and fast_path(x):
        for row, length in zip(x, lengths.tolist(), strict=True):
            row[length:] = 0
        return x
    mask = length_mask(lengths, x.shape[1])
    return x.masked_fill(~mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), 0)


def full_lengths(x: torch.Tensor) -> torch.Tensor:
    """Lengths int64 [B] of a batch without padding, each T."""
    return torch.full((x.shape[0],), x.shape[1], device=x.device)


def check_lengths(
    lengths: torch.Tensor, x: torch.Tensor, name: str
) -> torch.Tensor:
    """Check absolute lengths of a batch `x`; return them on its device.

    Raises ValueError that names the argument `name` if they are not int64 [B]
    in 1..T.
    """
    if not isinstance(lengths, torch.Tensor) or (
        lengths.is_floating_point() or lengths.is_complex()
    ):
        raise ValueError(
            f"{name} must be an integer tensor of absolute lengths, got "
            f"{getattr(lengths, 'dtype', type(lengths).__name__)}; multiply "
            "relative lengths by the batch's length and round them"
        )
    if lengths.shape != (x.shape[0],):
        raise ValueError(
            f"{name} must have shape [{x.shape[0]}], one length per item of "
            f"the batch, got {list(lengths.shape)}"
        )
    # One transfer from a GPU for both.
    low, high = torch.stack(lengths.aminmax()).tolist()
    if low < 1 or high > x.shape[1]:
        raise ValueError(
            f"{name} must lie in 1..{x.shape[1]}, the batch's padded length, "
            f"got {low}..{high}"
        )
    return lengths.to(device=x.device, dtype=torch.int64)
