"""Networks between a task's front end and its loss.

Each takes vectors [B, N, C] and lengths [B] and gives the same of another
size, `output_dim`, or one vector an utterance.
"""

import torch
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.nnet.attention import RelPosEncXL
from torch import nn

from speechbrain_focalcodec.modules.masking import length_mask

__all__ = ["BiLSTM", "Conformer", "PooledBiLSTM"]


class BiLSTM(nn.Module):
    """A bidirectional LSTM: the paper's probe.

    FocalCodec's ASR probe has two layers of 512 (appendix on downstream
    tasks).

    Arguments
    ---------
    input_dim : int
        Size of the vectors.
    hidden_dim : int
        Size of a direction's state.
    num_layers : int
        Number of layers.
    dropout : float
        Before each layer and after the last.

    Example
    -------
    >>> network = BiLSTM(13, 32)
    >>> network(torch.randn(2, 9, 13), torch.tensor([9, 4])).shape
    torch.Size([2, 9, 64])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 512,
        num_layers: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.output_dim = 2 * hidden_dim
        self.dropout = nn.Dropout(dropout)
        sizes = [input_dim, *[self.output_dim] * (num_layers - 1)]
        self.forwards, self.backwards = (
            nn.ModuleList(
                nn.LSTM(size, hidden_dim, batch_first=True) for size in sizes
            )
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Run over both directions.

        Arguments
        ---------
        x : torch.Tensor
            [B, N, C].
        lengths : torch.Tensor
            int64 [B].

        Returns
        -------
        torch.Tensor
            [B, N, output_dim]; what it has in the padding means nothing.
        """
        # Reversing each utterance keeps the padding at the end. Packed
        # sequences do too, but take time by the square of N on a CPU.
        steps = torch.arange(x.shape[1], device=x.device)
        order = lengths[:, None] - 1 - steps
        order = torch.where(order < 0, steps, order)[..., None]
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            x = self.dropout(x)
            y, _ = ahead(x)
            z, _ = back(x.gather(1, order.expand_as(x)))
            z = z.gather(1, order.expand_as(z))
            x = torch.cat([y, z], dim=-1)
        return self.dropout(x)


class Conformer(nn.Module):
    """SpeechBrain's Conformer with relative positions.

    Attention sees no padding; its convolutions, as in SpeechBrain's own
    recipes, see what lies within their kernel.

    Arguments
    ---------
    input_dim : int
        Size of the vectors.
    dim : int
        Size within.
    num_layers : int
        Number of layers.
    num_heads : int
        Attention heads.
    ffn_dim : int
        Size of the feed-forward parts.
    kernel_size : int
        Of the convolutions.
    dropout : float
        Dropout.

    Example
    -------
    >>> network = Conformer(13, 32, num_layers=1, num_heads=2, ffn_dim=64)
    >>> network(torch.randn(2, 9, 13), torch.tensor([9, 4])).shape
    torch.Size([2, 9, 32])
    """

    def __init__(
        self,
        input_dim: int,
        dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 4,
        ffn_dim: int = 1024,
        kernel_size: int = 31,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.output_dim = dim
        self.input = nn.Sequential(
            nn.Linear(input_dim, dim), nn.Dropout(dropout)
        )
        self.positions = RelPosEncXL(dim)
        self.encoder = ConformerEncoder(
            num_layers,
            dim,
            ffn_dim,
            num_heads,
            kernel_size,
            dropout=dropout,
            attention_type="RelPosMHAXL",
        )

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Encode.

        Arguments
        ---------
        x : torch.Tensor
            [B, N, C].
        lengths : torch.Tensor
            int64 [B].

        Returns
        -------
        torch.Tensor
            [B, N, output_dim].
        """
        x = self.input(x)
        padding = ~length_mask(lengths, x.shape[1])
        y, _ = self.encoder(
            x, src_key_padding_mask=padding, pos_embs=self.positions(x)
        )
        return y


class PooledBiLSTM(nn.Module):
    """One vector an utterance: mean and deviation of what a BiLSTM gives.

    Arguments
    ---------
    input_dim : int
        Size of the vectors.
    hidden_dim : int
        Size of a direction's state.
    num_layers : int
        Number of layers; 0 pools the front end's vectors themselves.
    dropout : float
        As in :class:`BiLSTM`.

    Example
    -------
    >>> network = PooledBiLSTM(13, 32)
    >>> network(torch.randn(2, 9, 13), torch.tensor([9, 4])).shape
    torch.Size([2, 128])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 256,
        num_layers: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.frames: BiLSTM | None = None
        size = input_dim
        if num_layers:
            self.frames = BiLSTM(input_dim, hidden_dim, num_layers, dropout)
            size = self.frames.output_dim
        self.output_dim = 2 * size

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Pool.

        Arguments
        ---------
        x : torch.Tensor
            [B, N, C].
        lengths : torch.Tensor
            int64 [B].

        Returns
        -------
        torch.Tensor
            [B, output_dim].
        """
        if self.frames is not None:
            x = self.frames(x, lengths)
        # SpeechBrain's pooling adds noise, and NaN for a single frame.
        count = lengths.clamp(min=1)[:, None]
        valid = length_mask(lengths, x.shape[1])[..., None]
        mean = (x * valid).sum(1) / count
        square = ((x - mean[:, None]) * valid).square().sum(1) / count
        return torch.cat([mean, (square + 1e-6).sqrt()], dim=-1)
