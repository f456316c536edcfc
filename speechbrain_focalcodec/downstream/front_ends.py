"""Front ends: turn waveforms or tokens into vectors for a network.

`prepare` turns waveforms into tokens or features. It has no parameters to
train, so its output can be computed once. `forward` turns that output into
vectors and is trained with the task.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.masking import length_mask, zero_beyond
from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.modules.token_embedding import TokenEmbedding

__all__ = [
    "FRONT_ENDS",
    "FeatureFrontEnd",
    "FrameNorm",
    "FrontEnd",
    "LogMelFrontEnd",
    "TokenFrontEnd",
    "make_front_end",
]


class FrontEnd(nn.Module):
    """Base class of front ends.

    `dim` is the size of a vector, `rate` in vectors per second, `sample_rate`
    in Hz. The codec is not a submodule: its weights are neither trained nor
    saved with the task.
    """

    def __init__(
        self,
        dim: int,
        rate: float,
        sample_rate: int,
        codec: FocalCodec | None = None,
    ):
        super().__init__()
        self.dim = dim
        self.rate = rate
        self.sample_rate = sample_rate
        # The tuple hides it from nn.Module.
        self._codec = (codec,)

    @property
    def codec(self) -> FocalCodec | None:
        return self._codec[0]

    @torch.no_grad()
    def prepare(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn waveforms into tokens or features, in full precision.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate`.
        lengths : torch.Tensor
            Lengths in samples, int64 [B].

        Returns
        -------
        prepared : torch.Tensor
            Tokens [B, N] or features [B, N, C].
        lengths : torch.Tensor
            Lengths of `prepared`, int64 [B].
        """
        codec = self.codec
        if codec is not None:
            codec.to(sig.device)
        # Under autocast some tokens would differ.
        with torch.autocast(sig.device.type, enabled=False):
            return self.extract(sig, lengths)

    def extract(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Implement :meth:`prepare`; called without autocast and gradients."""
        raise NotImplementedError

    def _require_codec(self) -> FocalCodec:
        if self.codec is None:
            raise ConfigError(
                f"{type(self).__name__} was made without a codec, so it "
                "cannot take waveforms: give it one, or train on a token "
                "dataset"
            )
        return self.codec


class TokenFrontEnd(FrontEnd):
    """Tokens, each with a vector that is initialised with its code.

    Arguments
    ---------
    codec : FocalCodec, optional
        Encodes waveforms. Without it, `codebook_size` and `token_rate` are
        required and the tokens come from a token dataset.
    codebook_size : int, optional
        Number of codes.
    token_rate : float, optional
        Tokens per second.
    dim : int, optional
        Size of a vector; by default the size of a code.
    freeze : bool
        Do not train the vectors.
    tied_to_codes : bool
        Train a linear function of the codes instead of one vector per token,
        for large codebooks.
    sample_rate : int, optional
        Sample rate of the input in Hz; by default the codec's.

    Raises
    ------
    ConfigError
        If neither a codec nor codebook size and token rate are given, or if
        they contradict the codec.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> front_end = TokenFrontEnd(codec, dim=64)
    >>> sig, lengths = torch.randn(2, 16000), torch.tensor([16000, 8000])
    >>> toks, lengths = front_end.prepare(sig, lengths)
    >>> front_end(toks, lengths).shape, lengths.tolist()
    (torch.Size([2, 50, 64]), [50, 25])
    """

    def __init__(
        self,
        codec: FocalCodec | None = None,
        codebook_size: int | None = None,
        token_rate: float | None = None,
        dim: int | None = None,
        freeze: bool = False,
        tied_to_codes: bool = False,
        sample_rate: int | None = None,
    ):
        if codec is not None:
            own = (codec.codebook_size, codec.token_rate)
            for name, value, expected in zip(
                ("codebook_size", "token_rate"),
                (codebook_size, token_rate),
                own,
                strict=True,
            ):
                if value is not None and value != expected:
                    raise ConfigError(
                        f"{name} is {value}, but {codec.name} has {expected}"
                    )
            codebook_size, token_rate = own
            sample_rate = codec.sample_rate_input
        if codebook_size is None or token_rate is None:
            raise ConfigError(
                "TokenFrontEnd needs a codec, or codebook_size and token_rate"
            )
        code_dim = (codebook_size - 1).bit_length()
        super().__init__(
            dim or code_dim, token_rate, sample_rate or 16000, codec
        )
        self.codebook_size = codebook_size
        self.embedding = TokenEmbedding(
            codebook_size,
            self.dim,
            freeze=freeze,
            tied_to_codes=tied_to_codes,
            scale=self.dim**0.5,
        )

    def extract(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._require_codec().encode(sig, lengths)

    def forward(
        self, toks: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Tokens [B, N] to vectors [B, N, dim]."""
        return self.embedding(toks)


class FrameNorm(nn.Module):
    """Batch normalisation of frames [B, N, C] that ignores padding.

    SpeechBrain converts ``nn.BatchNorm1d`` to a synchronised one in
    distributed training. This class is not converted: each rank uses its own
    statistics.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Normalise [B, N, C]; padding becomes zero."""
        valid = length_mask(lengths, x.shape[1])
        result = torch.zeros_like(x)
        result[valid] = F.batch_norm(
            x[valid],
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
        ).to(x.dtype)
        return result


class FeatureFrontEnd(FrontEnd):
    """Features of the codec's encoder, before compression and quantization.

    Arguments
    ---------
    codec : FocalCodec
        The codec.
    """

    def __init__(self, codec: FocalCodec):
        rate = codec.sample_rate_input / codec.encoder.hop_length
        dim = codec.encoder.output_dim
        super().__init__(dim, rate, codec.sample_rate_input, codec)
        self.norm = FrameNorm(dim)

    def extract(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        feats, lengths = self._require_codec().sig_to_feats(sig, lengths)
        return feats, lengths

    def forward(
        self, feats: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Normalise features [B, N, C]."""
        return self.norm(feats, lengths)


class LogMelFrontEnd(FrontEnd):
    """Log-mel bands, without a codec: two frames of 80 bands per vector.

    Stacking halves the rate, which makes CTC faster and easier to train.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the input in Hz.
    """

    def __init__(self, sample_rate: int = 16000):
        n_mels, hop_length, self.stack = 80, 160, 2
        super().__init__(
            n_mels * self.stack,
            sample_rate / hop_length / self.stack,
            sample_rate,
        )
        self.mel = LogMel(
            sample_rate,
            n_mels,
            512,
            hop_length,
            f_max=sample_rate / 2,
            floor=1e-5,
        )
        self.norm = FrameNorm(self.dim)

    def extract(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        feats = self.mel(sig, lengths)
        lengths = self.mel.output_lengths(lengths)
        # Frames beyond the end overlap the utterance. They are cleared, so
        # that results do not depend on the padding of the batch.
        feats = zero_beyond(feats, lengths)
        feats = F.pad(feats, (0, 0, 0, -feats.shape[1] % self.stack))
        feats = feats.reshape(len(feats), -1, self.dim)
        return feats, (lengths + self.stack - 1) // self.stack

    def forward(
        self, feats: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Normalise log-mel bands [B, N, C]."""
        return self.norm(feats, lengths)


#: Values of ``input`` in a task's YAML.
FRONT_ENDS = ("tokens", "features", "log_mel")


def make_front_end(
    kind: str,
    codec: FocalCodec | None = None,
    options: Mapping[str, Any] | None = None,
) -> FrontEnd:
    """Make a front end by name.

    Arguments
    ---------
    kind : str
        ``tokens``, ``features`` or ``log_mel``.
    codec : FocalCodec, optional
        The codec. ``log_mel`` only uses its sample rate.
    options : mapping, optional
        More arguments of :class:`TokenFrontEnd`; the others ignore them.

    Returns
    -------
    FrontEnd
        The front end.

    Raises
    ------
    ConfigError
        If the name is unknown, or a codec is missing.
    """
    if kind not in FRONT_ENDS:
        raise ConfigError(f"input: {kind!r} is none of {', '.join(FRONT_ENDS)}")
    if kind == "tokens":
        return TokenFrontEnd(codec, **(options or {}))
    if kind == "log_mel":
        rate = 16000 if codec is None else codec.sample_rate_input
        return LogMelFrontEnd(rate)
    if codec is None:
        raise ConfigError("input: features are a codec's; give a codec")
    return FeatureFrontEnd(codec)
