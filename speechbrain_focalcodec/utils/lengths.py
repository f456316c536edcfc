"""Converts SpeechBrain's relative lengths to absolute ones."""

import torch

__all__ = ["absolute_lengths", "data_and_lengths"]


def absolute_lengths(
    name: str, relative: torch.Tensor | None, batch: torch.Tensor
) -> torch.Tensor:
    """Convert relative lengths of a batch to absolute ones.

    Arguments
    ---------
    name : str
        Name of the argument in messages.
    relative : torch.Tensor, optional
        Float [B] in (0, 1]; full lengths by default.
    batch : torch.Tensor
        [B, T, ...].

    Returns
    -------
    torch.Tensor
        int64 [B].

    Raises
    ------
    ValueError
        If their number or a value is wrong.
    """
    size, longest = batch.shape[:2]
    if relative is None:
        return torch.full((size,), longest, device=batch.device)
    relative = torch.as_tensor(relative, device=batch.device)
    if relative.shape != (size,):
        raise ValueError(
            f"{name}: must have one value for each of the {size} items, "
            f"but its shape is {list(relative.shape)}"
        )
    lengths = (relative.double() * longest).round()
    # Rounding comes first: float lengths may exceed 1 by their last bit.
    if not bool(((lengths >= 1) & (lengths <= longest)).all()):
        raise ValueError(
            f"{name}: must be relative lengths in (0, 1] that leave each "
            f"item at least one of {longest}, not {relative.tolist()}"
        )
    return lengths.long()


def data_and_lengths(
    padded: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Data [B, T, ...] and absolute lengths, int64 [B], of a padded batch."""
    data, relative = padded
    return data, (relative * data.shape[1]).round().long()
