"""How a corpus uses the codes of a codebook."""

import torch

__all__ = ["code_statistics", "count_codes"]


def count_codes(toks: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Count the codes of an utterance; counts of utterances can be added.

    Arguments
    ---------
    toks : torch.Tensor
        Tokens, int64 of any shape.
    codebook_size : int
        Number of codes.

    Returns
    -------
    torch.Tensor
        How often each occurs, int64 [codebook_size].

    Raises
    ------
    ValueError
        If a token is not in the codebook.

    Example
    -------
    >>> count_codes(torch.tensor([0, 2, 2]), 4).tolist()
    [1, 0, 2, 0]
    """
    if toks.numel() and not 0 <= int(toks.min()) <= int(toks.max()) < (
        codebook_size
    ):
        raise ValueError(
            f"tokens from {int(toks.min())} to {int(toks.max())}, but the "
            f"codebook has {codebook_size}"
        )
    return torch.bincount(toks.flatten(), minlength=codebook_size)


def code_statistics(counts: torch.Tensor) -> dict[str, float]:
    """Describe the use of a codebook.

    Arguments
    ---------
    counts : torch.Tensor
        How often each code occurs in a corpus, [codebook_size].

    Returns
    -------
    dict
        ``code_usage``, the share of codes that occur; ``code_entropy``, the
        entropy over that of uniform use of all codes, and
        ``code_entropy_used``, over that of the codes that occur (0 when it is
        a single one). All are in [0, 1]; empty when nothing was counted.

    Example
    -------
    >>> code_statistics(torch.tensor([1, 1, 0, 0]))
    {'code_usage': 0.5, 'code_entropy': 0.5, 'code_entropy_used': 1.0}
    """
    total = counts.sum()
    if total == 0:
        return {}
    share = counts.double() / total
    entropy = torch.special.entr(share).sum().clamp(min=0)
    used = (counts > 0).sum()

    def relative(codes: int | torch.Tensor) -> float:
        most = torch.as_tensor(codes).double().log()
        return min(1.0, float(entropy / most)) if most > 0 else 0.0

    return {
        "code_usage": float(used / len(counts)),
        "code_entropy": relative(len(counts)),
        "code_entropy_used": relative(used),
    }
