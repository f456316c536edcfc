"""Networks between a task's front end and its loss.

A network takes vectors [B, N, C] and absolute lengths [B]. It returns
vectors [B, N, output_dim], or one vector per utterance [B, output_dim].
"""

import torch
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.nnet.attention import RelPosEncXL
from torch import nn

from speechbrain_focalcodec.modules.masking import length_mask

__all__ = ["BiLSTM", "Conformer", "PooledBiLSTM"]


class BiLSTM(nn.Module):
    """A bidirectional LSTM.

    FocalCodec's paper probes recognition with two layers of 512.

    Arguments
    ---------
    input_dim : int
        Size of the input vectors.
    hidden_dim : int
        Size of the state of each direction.
    num_layers : int
        Number of layers.
    dropout : float
        Dropout before each layer and after the last.

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
        """[B, N, C] to [B, N, output_dim]; the padding is undefined."""
        # Reversing each utterance keeps the padding at the end. Packed
        # sequences would too, but their time is quadratic in N on CPUs.
        steps = torch.arange(x.shape[1], device=x.device)
        order = lengths[:, None] - 1 - steps
        order = torch.where(order < 0, steps, order)[..., None]
        for forward, backward in zip(
            self.forwards, self.backwards, strict=True
        ):
            x = self.dropout(x)
            y, _ = forward(x)
            z, _ = backward(x.gather(1, order.expand_as(x)))
            z = z.gather(1, order.expand_as(z))
            x = torch.cat([y, z], dim=-1)
        return self.dropout(x)


class Conformer(nn.Module):
    """SpeechBrain's Conformer with relative positions.

    The attention ignores padding. The convolutions do not, as in SpeechBrain's
    recipes.

    Arguments
    ---------
    input_dim : int
        Size of the input vectors.
    dim : int
        Size of the hidden and output vectors.
    num_layers : int
        Number of layers.
    num_heads : int
        Number of attention heads.
    ffn_dim : int
        Size of the feed-forward layers.
    kernel_size : int
        Kernel size of the convolutions.
    dropout : float
        Dropout.
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
        """[B, N, C] to [B, N, output_dim]."""
        x = self.input(x)
        padding = ~length_mask(lengths, x.shape[1])
        y, _ = self.encoder(
            x, src_key_padding_mask=padding, pos_embs=self.positions(x)
        )
        return y


class PooledBiLSTM(nn.Module):
    """A BiLSTM, pooled to the mean and deviation of each utterance.

    Arguments
    ---------
    input_dim : int
        Size of the input vectors.
    hidden_dim : int
        Size of the state of each direction.
    num_layers : int
        Number of layers; 0 pools the input vectors.
    dropout : float
        As in :class:`BiLSTM`.
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
        """[B, N, C] to [B, output_dim]."""
        if self.frames is not None:
            x = self.frames(x, lengths)
        # SpeechBrain's pooling adds noise, and NaN for a single frame.
        count = lengths.clamp(min=1)[:, None]
        valid = length_mask(lengths, x.shape[1])[..., None]
        mean = (x * valid).sum(1) / count
        square = ((x - mean[:, None]) * valid).square().sum(1) / count
        return torch.cat([mean, (square + 1e-6).sqrt()], dim=-1)
