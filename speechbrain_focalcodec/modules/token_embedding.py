"""An embedding of tokens that is initialised with the codes."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.modules.bsq import BinarySphericalQuantizer

__all__ = ["TokenEmbedding"]


class TokenEmbedding(nn.Module):
    """Tokens to vectors, initialised with the codes of the codebook.

    A token's code has d signs, +-1/sqrt(d). Its vector is initialised as that
    code, projected to `dim` by a random orthonormal matrix, so tokens with many
    bits in common are near each other; for `dim` = d it is the code itself.
    Special tokens follow the codebook: the first one is `codebook_size`.

    Arguments
    ---------
    codebook_size : int
        Number of codes, a power of two.
    dim : int
        Size of a vector.
    num_special : int
        Number of special tokens (begin, end, padding, ...). They are
        initialised at random and always trained.
    freeze : bool
        Whether the codes' vectors are fixed.
    tied_to_codes : bool
        Whether each vector is a learned linear function of its code, with
        d x dim parameters, in place of a table of free vectors. Frozen vectors
        are computed too.
    padding_idx : int, optional
        A special token whose vector is and stays zero.
    scale : float
        Initial length of the vectors (``nn.Embedding`` has sqrt(dim)).
    seed : int
        Seed of the matrix and the special tokens; torch's own generator is not
        used.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> embedding = TokenEmbedding(8192, 512, num_special=2)
    >>> begin = embedding.codebook_size
    >>> embedding(torch.tensor([[begin, 17, 4711]])).shape
    torch.Size([1, 3, 512])
    >>> large = TokenEmbedding(2**20, 512, tied_to_codes=True)
    >>> sum(p.numel() for p in large.parameters())
    10240
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        num_special: int = 0,
        freeze: bool = False,
        tied_to_codes: bool = False,
        padding_idx: int | None = None,
        scale: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        if dim < 1 or num_special < 0:
            raise ValueError(
                "dim must be positive and num_special not negative, got "
                f"{dim} and {num_special}"
            )
        self.num_embeddings = codebook_size + num_special
        if padding_idx is not None and not (
            codebook_size <= padding_idx < self.num_embeddings
        ):
            raise ValueError(
                "padding_idx must be a special token, within "
                f"{codebook_size}..{self.num_embeddings - 1}, got {padding_idx}"
            )
        self.codebook_size = codebook_size
        self.embedding_dim = dim
        self.padding_idx = padding_idx
        self.freeze = freeze
        self.quantizer = BinarySphericalQuantizer(codebook_size)
        generator = torch.Generator().manual_seed(seed)
        projection = _projection(self.quantizer.dim, dim, generator) * scale
        special = torch.randn(num_special, dim, generator=generator)
        special *= scale / math.sqrt(dim)
        if padding_idx is not None:
            special[padding_idx - codebook_size] = 0
        self.table: nn.Parameter | None = None
        if freeze or tied_to_codes:
            self.projection = nn.Parameter(projection, requires_grad=not freeze)
            self.special = nn.Parameter(special)
        else:
            codes = self.quantizer.toks_to_codes(torch.arange(codebook_size))
            self.table = nn.Parameter(torch.cat([codes @ projection, special]))

    @property
    def weight(self) -> torch.Tensor:
        """All vectors [codebook_size + num_special, dim], with gradients.

        For an output layer that shares them: ``hidden @ embedding.weight.T``.
        """
        if self.table is not None:
            return self.table
        toks = torch.arange(self.codebook_size, device=self.special.device)
        return torch.cat([self._code_vectors(toks), self.special])

    def forward(self, toks: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [...], to vectors [..., dim]."""
        if self.table is not None:
            return F.embedding(toks, self.table, self.padding_idx)
        size = self.codebook_size
        is_code = (toks >= 0) & (toks < size)
        # Entry 0 stands in for codes. The look-up raises for tokens out of
        # range.
        special = torch.cat(
            [torch.zeros_like(self.projection[:1]), self.special]
        )
        index = torch.where(is_code, 0, toks - size + 1)
        index = torch.where(toks < 0, toks, index)
        padding = None
        if self.padding_idx is not None:
            padding = self.padding_idx - size + 1
        others = F.embedding(index, special, padding)
        vectors = self._code_vectors(torch.where(is_code, toks, 0))
        return torch.where(is_code[..., None], vectors, others)

    def extra_repr(self) -> str:
        return (
            f"{self.codebook_size} + "
            f"{self.num_embeddings - self.codebook_size}, "
            f"{self.embedding_dim}, freeze={self.freeze}, "
            f"tied_to_codes={self.table is None}"
        )

    def _code_vectors(self, toks: torch.Tensor) -> torch.Tensor:
        codes = self.quantizer.toks_to_codes(toks).to(self.projection.dtype)
        return codes @ self.projection


def _projection(
    code_dim: int, dim: int, generator: torch.Generator
) -> torch.Tensor:
    """A matrix [d, dim] that preserves the mean square length of codes."""
    if dim == code_dim:
        return torch.eye(dim)
    large, small = max(code_dim, dim), min(code_dim, dim)
    noise = torch.randn(large, small, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(noise)[0].float()
    if dim > code_dim:
        return basis.T
    return basis * math.sqrt(code_dim / dim)
