"""Absolute lengths and what lies beyond them.

A padded batch must give each utterance what it would get alone. Modules that
look to the right (or average over time) call :func:`zero_beyond` on their
input; the stages of the codec call it on their output.
"""

import torch

from speechbrain_focalcodec.modules.derived import fast_path

__all__ = ["check_lengths", "full_lengths", "length_mask", "zero_beyond"]


def length_mask(lengths: torch.Tensor, max_len: int) -> torch.Tensor:
    """Mark the valid steps of a padded batch.

    Arguments
    ---------
    lengths : torch.Tensor
        Absolute lengths, int64 [B].
    max_len : int
        Number of steps T of the padded batch.

    Returns
    -------
    torch.Tensor
        bool [B, T], True within the length.

    Example
    -------
    >>> length_mask(torch.tensor([1, 3]), 3).long()
    tensor([[1, 0, 0],
            [1, 1, 1]])
    """
    steps = torch.arange(max_len, device=lengths.device)
    return steps < lengths[:, None]


def zero_beyond(
    x: torch.Tensor, lengths: torch.Tensor | None, own: bool = False
) -> torch.Tensor:
    """Set the padding of a batch to zero.

    Arguments
    ---------
    x : torch.Tensor
        Batch [B, T, ...].
    lengths : torch.Tensor, optional
        Absolute lengths, int64 [B]; None leaves `x` as it is.
    own : bool
        Whether nobody else needs what `x` holds beyond the lengths. Where no
        gradient is wanted, only that is then written.

    Returns
    -------
    torch.Tensor
        `x` with zeros beyond each length.

    Example
    -------
    >>> zero_beyond(torch.ones(2, 3), torch.tensor([1, 3]))
    tensor([[1., 0., 0.],
            [1., 1., 1.]])
    """
    if lengths is None:
        return x
    if own and fast_path(x):
        for row, length in zip(x, lengths.tolist(), strict=True):
            row[length:] = 0
        return x
    mask = length_mask(lengths, x.shape[1])
    return x.masked_fill(~mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), 0)


def full_lengths(x: torch.Tensor) -> torch.Tensor:
    """Lengths of a batch without padding.

    Arguments
    ---------
    x : torch.Tensor
        Batch [B, T, ...].

    Returns
    -------
    torch.Tensor
        int64 [B], each T.

    Example
    -------
    >>> full_lengths(torch.zeros(2, 5))
    tensor([5, 5])
    """
    return torch.full((x.shape[0],), x.shape[1], device=x.device)


def check_lengths(
    lengths: torch.Tensor, x: torch.Tensor, name: str
) -> torch.Tensor:
    """Check lengths where they enter the codec.

    Arguments
    ---------
    lengths : torch.Tensor
        What the caller gave as absolute lengths.
    x : torch.Tensor
        The batch [B, T, ...] that they belong to.
    name : str
        The argument's name, for the message.

    Returns
    -------
    torch.Tensor
        `lengths` on the device of `x`.

    Raises
    ------
    ValueError
        If `lengths` is not int64 [B] or leaves the range 1..T.

    Example
    -------
    >>> check_lengths(torch.tensor([2]), torch.zeros(1, 3), "lengths")
    tensor([2])
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
            f"{name} must have shape [{x.shape[0]}], one length an item of "
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
