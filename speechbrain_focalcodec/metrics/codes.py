"""Statistics of codebook usage."""

import torch

__all__ = ["code_statistics"]


def code_statistics(counts: torch.Tensor) -> dict[str, float]:
    """Usage and entropy of a codebook in [0, 1], from counts [codebook_size].

    ``code_usage`` is the share of codes that occur. ``code_entropy`` is the
    entropy divided by that of a uniform distribution over all codes,
    ``code_entropy_used`` over the codes that occur (0 for a single code). Empty
    if the counts are 0.
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
