"""The Fourier transform of real frames as products of small matrices.

A transform of N = P * Q points is Q transforms of P points, a factor for each
result, and P transforms of Q points. As products of matrices it runs wherever
these run fast, at an eighth of the multiplications of a single matrix for
N = 1024, and its sums are short, so it rounds no more than an FFT does.
"""

import math

import torch
from torch import nn

__all__ = ["InverseRealFourier", "RealFourier", "split_points"]


def split_points(size: int) -> tuple[int, int]:
    """Two factors of a number, as near to each other as can be.

    Arguments
    ---------
    size : int
        The number.

    Returns
    -------
    (int, int)
        The smaller one first.

    Example
    -------
    >>> split_points(1024), split_points(480), split_points(7)
    ((32, 32), (20, 24), (1, 7))
    """
    first = math.isqrt(size)
    while size % first:
        first -= 1
    return first, size // first


def _angles(rows: int, columns: int, size: int) -> torch.Tensor:
    """2 pi i j / size for all i and j, in double precision."""
    # Whole turns are taken off while the numbers are exact.
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % size
    return turns.double() * (2 * math.pi / size)


class _Fourier(nn.Module):
    """The matrices of both directions.

    Arguments
    ---------
    size : int
        Points N.
    """

    first: torch.Tensor
    cosines: torch.Tensor
    sines: torch.Tensor
    second: torch.Tensor
    weight: torch.Tensor

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.p, self.q = split_points(size)
        # The bins of each q-point spectrum that the half spectrum needs.
        self.bins = self.q // 2 + 1

    def _keep(self, name: str, matrix: torch.Tensor) -> None:
        self.register_buffer(name, matrix.float(), persistent=False)


class RealFourier(_Fourier):
    """Magnitudes of the spectra of real frames.

    Arguments
    ---------
    size : int
        Points N.

    Example
    -------
    >>> fourier = RealFourier(12)
    >>> x = torch.randn(2, 5, 12)
    >>> magnitude = fourier(x)[..., fourier.order]
    >>> torch.allclose(magnitude, torch.fft.rfft(x).abs(), atol=1e-5)
    True
    """

    def __init__(self, size: int):
        super().__init__(size)
        p, q, bins = self.p, self.q, self.bins
        first = _angles(p, p, p)
        self._keep("first", torch.cat([first.cos(), -first.sin()], 1))
        twist = _angles(q, p, size)
        self._keep("cosines", twist.cos())
        self._keep("sines", twist.sin())
        second = _angles(q, bins, q)
        cos, sin = second.cos(), second.sin()
        self._keep(
            "second",
            torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]),
        )
        #: Places of bins 0 to N / 2 in the output.
        self.order = [k % p * bins + k // p for k in range(size // 2 + 1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform.

        Arguments
        ---------
        x : torch.Tensor
            Frames [B, T, N].

        Returns
        -------
        torch.Tensor
            Magnitudes [B, T, M], M > N / 2: see `order`.
        """
        p, q = self.p, self.q
        x = x.unflatten(-1, (p, q)).transpose(-1, -2) @ self.first
        real, imag = x.split(p, dim=-1)
        x = torch.stack(
            [
                real * self.cosines + imag * self.sines,
                imag * self.cosines - real * self.sines,
            ],
            dim=-3,
        )
        # [B, T, 2, q, p] to [B, T, p, 2 q].
        x = x.permute(0, 1, 4, 2, 3).flatten(3) @ self.second
        real, imag = x.split(self.bins, dim=-1)
        return (real.square() + imag.square()).sqrt().flatten(2)


class InverseRealFourier(_Fourier):
    """Real frames from half spectra.

    Arguments
    ---------
    size : int
        Points N, an even number.

    Example
    -------
    >>> x = torch.randn(2, 5, 12)
    >>> spectrum = torch.fft.rfft(x)
    >>> y = InverseRealFourier(12)(spectrum.real, spectrum.imag)
    >>> torch.allclose(x, y, atol=1e-5)
    True
    """

    def __init__(self, size: int):
        super().__init__(size)
        p, q, bins = self.p, self.q, self.bins
        # All but the first and the last bin stand for two.
        weight = torch.full((p * bins,), 2.0, dtype=torch.float64)
        weight[0] = 1
        weight[size // 2] = 1
        weight[size // 2 + 1 :] = 0
        self._keep("weight", weight / size)
        first = _angles(bins, q, q)
        cos, sin = first.cos(), first.sin()
        self._keep(
            "first",
            torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)]),
        )
        twist = _angles(p, q, size)
        self._keep("cosines", twist.cos())
        self._keep("sines", twist.sin())
        second = _angles(p, p, p)
        self._keep("second", torch.cat([second.cos(), -second.sin()]))

    def forward(self, real: torch.Tensor, imag: torch.Tensor) -> torch.Tensor:
        """Transform.

        Arguments
        ---------
        real, imag : torch.Tensor
            Half spectra [B, T, N / 2 + 1].

        Returns
        -------
        torch.Tensor
            Frames [B, T, N].
        """
        p, q, bins = self.p, self.q, self.bins
        x = torch.stack([real, imag], dim=2)
        x = nn.functional.pad(x, (0, p * bins - x.shape[-1])) * self.weight
        # Bin k1 + p k2: [B, T, 2, bins, p] to [B, T, p, 2 bins].
        x = x.unflatten(-1, (bins, p)).permute(0, 1, 4, 2, 3).flatten(3)
        real, imag = (x @ self.first).split(q, dim=-1)
        x = torch.stack(
            [
                real * self.cosines - imag * self.sines,
                real * self.sines + imag * self.cosines,
            ],
            dim=2,
        )
        # [B, T, 2, p, q] to [B, T, q, 2 p]; sample q n1 + n2 is [n2, n1].
        x = x.permute(0, 1, 4, 2, 3).flatten(3) @ self.second
        return x.transpose(-1, -2).flatten(2)
