"""SpeechBrain's relative lengths to absolute ones."""

import torch

__all__ = ["absolute_lengths", "data_and_lengths"]


def absolute_lengths(
    name: str, relative: torch.Tensor | None, batch: torch.Tensor
) -> torch.Tensor:
    """Turn relative lengths of a batch into absolute ones.

    Arguments
    ---------
    name : str
        What they are called, for messages.
    relative : torch.Tensor, optional
        Float [B] in (0, 1]; all are whole by default.
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

    Example
    -------
    >>> absolute_lengths("lens", torch.tensor([1.0, 0.5]), torch.zeros(2, 8))
    tensor([8, 4])
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
    # Float lengths may exceed 1 by their last bit, so rounding goes first.
    if not bool(((lengths >= 1) & (lengths <= longest)).all()):
        raise ValueError(
            f"{name}: must be relative lengths in (0, 1] that leave each "
            f"item at least one of {longest}, not {relative.tolist()}"
        )
    return lengths.long()


def data_and_lengths(
    padded: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """What SpeechBrain has padded, with absolute lengths.

    Arguments
    ---------
    padded : tuple of torch.Tensor
        Data [B, T, ...] and relative lengths [B], of a ``PaddedBatch``.

    Returns
    -------
    data : torch.Tensor
        [B, T, ...].
    lengths : torch.Tensor
        int64 [B].

    Example
    -------
    >>> data, lens = torch.zeros(2, 8), torch.tensor([1.0, 0.5])
    >>> data_and_lengths((data, lens))[1]
    tensor([8, 4])
    """
    data, relative = padded
    return data, (relative * data.shape[1]).round().long()
