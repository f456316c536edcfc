"""What a task sees of speech: tokens, or what they are compared with.

A front end has two halves. `prepare` has nothing to train: what it gives can
be kept, or comes from a token dataset. `forward` makes vectors of it.
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
    """What all front ends offer.

    Arguments
    ---------
    dim : int
        Size of a vector.
    rate : float
        Vectors a second.
    sample_rate : int
        Of the waveforms that it takes, in Hz.
    codec : FocalCodec, optional
        The codec that it asks. It is no module of the front end: its weights
        are neither trained nor saved with the task's.

    Example
    -------
    >>> FrontEnd(dim=13, rate=50.0, sample_rate=16000).rate
    50.0
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
        # In a tuple nn.Module does not find it.
        self._codec = (codec,)

    @property
    def codec(self) -> FocalCodec | None:
        """The codec that it asks, if any."""
        return self._codec[0]

    @torch.no_grad()
    def prepare(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What can be kept of waveforms, in full precision.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate`.
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        prepared : torch.Tensor
            Tokens [B, N] or features [B, N, C].
        lengths : torch.Tensor
            Their lengths, int64 [B].
        """
        codec = self.codec
        if codec is not None:
            codec.to(sig.device)
        # Autocast of training would give some other tokens.
        with torch.autocast(sig.device.type, enabled=False):
            return self.extract(sig, lengths)

    def extract(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A front end's own part of :meth:`prepare`.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        prepared : torch.Tensor
            Tokens [B, N] or features [B, N, C].
        lengths : torch.Tensor
            Their lengths, int64 [B].
        """
        raise NotImplementedError

    def _asked(self) -> FocalCodec:
        if self.codec is None:
            raise ConfigError(
                f"{type(self).__name__} was made without a codec, so it "
                "cannot take waveforms: give it one, or train on a token "
                "dataset"
            )
        return self.codec


class TokenFrontEnd(FrontEnd):
    """Tokens, each with a vector that starts from its code.

    Arguments
    ---------
    codec : FocalCodec, optional
        Tokenises waveforms. Without one, the next two must be given, and
        tokens come from a token dataset.
    codebook_size : int, optional
        Number of codes.
    token_rate : float, optional
        Tokens a second.
    dim : int, optional
        Size of a vector; by default that of a code, which it then starts as.
    freeze : bool
        Keep the vectors as they start.
    tied_to_codes : bool
        Learn a linear function of the codes, not a vector for each: for
        large codebooks.
    sample_rate : int, optional
        Of waveforms; by default the codec's.

    Raises
    ------
    ConfigError
        If neither a codec nor codebook size and token rate are given, or a
        codec with others.

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
            for name, value, wanted in zip(
                ("codebook_size", "token_rate"),
                (codebook_size, token_rate),
                own,
                strict=True,
            ):
                if value is not None and value != wanted:
                    raise ConfigError(
                        f"{name} is {value}, but {codec.name} has {wanted}"
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
        """Tokenise.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        toks : torch.Tensor
            Tokens, int64 [B, N].
        lengths : torch.Tensor
            Their lengths, int64 [B].
        """
        return self._asked().encode(sig, lengths)

    def forward(
        self, toks: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Look the vectors up.

        Arguments
        ---------
        toks : torch.Tensor
            Tokens, int64 [B, N].
        lengths : torch.Tensor
            Their lengths, int64 [B].

        Returns
        -------
        torch.Tensor
            Vectors [B, N, dim].
        """
        return self.embedding(toks)


class FrameNorm(nn.Module):
    """Batch normalisation over frames that counts no padding.

    It is no ``nn.BatchNorm1d``: SpeechBrain turns these into another class
    where several processes train. Each then counts its own frames.

    Arguments
    ---------
    num_features : int
        Size of a frame.
    momentum : float
        How much a batch counts in the running mean and variance.
    eps : float
        Added to the variance.

    Example
    -------
    >>> norm = FrameNorm(3)
    >>> norm(torch.randn(2, 7, 3), torch.tensor([7, 4])).shape
    torch.Size([2, 7, 3])
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(
        self, num_features: int, momentum: float = 0.1, eps: float = 1e-5
    ):
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Normalise.

        Arguments
        ---------
        x : torch.Tensor
            [B, N, C].
        lengths : torch.Tensor
            Frames, int64 [B].

        Returns
        -------
        torch.Tensor
            [B, N, C], zero in the padding.
        """
        valid = length_mask(lengths, x.shape[1])
        result = torch.zeros_like(x)
        result[valid] = F.batch_norm(
            x[valid],
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        ).to(x.dtype)
        return result


class FeatureFrontEnd(FrontEnd):
    """Features of the codec's encoder: what there is before the bits.

    Arguments
    ---------
    codec : FocalCodec
        The codec.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> front_end = FeatureFrontEnd(codec)
    >>> sig, lengths = torch.randn(2, 16000), torch.tensor([16000, 8000])
    >>> front_end(*front_end.prepare(sig, lengths)).shape
    torch.Size([2, 50, 80])
    """

    def __init__(self, codec: FocalCodec):
        rate = codec.sample_rate_input / codec.encoder.hop_length
        dim = codec.encoder.output_dim
        super().__init__(dim, rate, codec.sample_rate_input, codec)
        self.norm = FrameNorm(dim)

    def extract(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        feats : torch.Tensor
            Features [B, N, C].
        lengths : torch.Tensor
            Their lengths, int64 [B].
        """
        feats, lengths = self._asked().sig_to_feats(sig, lengths)
        return feats, lengths

    def forward(
        self, feats: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Normalise.

        Arguments
        ---------
        feats : torch.Tensor
            Features [B, N, C].
        lengths : torch.Tensor
            Their lengths, int64 [B].

        Returns
        -------
        torch.Tensor
            Vectors [B, N, C].
        """
        return self.norm(feats, lengths)


class LogMelFrontEnd(FrontEnd):
    """Log-mel bands, as recognisers have had them for decades.

    Arguments
    ---------
    sample_rate : int
        Of waveforms, in Hz.
    n_mels : int
        Number of bands.
    hop_length : int
        Samples from frame to frame.
    n_fft : int
        Samples of a window.
    stack : int
        Frames that make one vector: half as many steps are learnt with CTC
        more easily, and faster.

    Example
    -------
    >>> front_end = LogMelFrontEnd()
    >>> sig, lengths = torch.randn(2, 16000), torch.tensor([16000, 8000])
    >>> front_end(*front_end.prepare(sig, lengths)).shape
    torch.Size([2, 50, 160])
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 80,
        hop_length: int = 160,
        n_fft: int = 512,
        stack: int = 2,
    ):
        super().__init__(
            n_mels * stack, sample_rate / hop_length / stack, sample_rate
        )
        self.stack = stack
        self.mel = LogMel(
            sample_rate,
            n_mels,
            n_fft,
            hop_length,
            f_max=sample_rate / 2,
            floor=1e-5,
        )
        self.norm = FrameNorm(self.dim)

    def extract(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the bands.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        feats : torch.Tensor
            Log-mel bands [B, N, C].
        lengths : torch.Tensor
            Their lengths, int64 [B].
        """
        feats = self.mel(sig, lengths)
        lengths = self.mel.output_lengths(lengths)
        # A window beyond the end still hears some of the utterance; alone,
        # the utterance has none there to be stacked.
        feats = zero_beyond(feats, lengths)
        feats = F.pad(feats, (0, 0, 0, -feats.shape[1] % self.stack))
        feats = feats.reshape(len(feats), -1, self.dim)
        return feats, (lengths + self.stack - 1) // self.stack

    def forward(
        self, feats: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Normalise.

        Arguments
        ---------
        feats : torch.Tensor
            Log-mel bands [B, N, C].
        lengths : torch.Tensor
            Their lengths, int64 [B].

        Returns
        -------
        torch.Tensor
            Vectors [B, N, C].
        """
        return self.norm(feats, lengths)


#: What ``input`` of a task's YAML may be.
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
        The codec; ``log_mel`` needs none, but takes its sample rate.
    options : mapping, optional
        More arguments of ``tokens``, which the others do without.

    Returns
    -------
    FrontEnd
        The front end.

    Raises
    ------
    ConfigError
        If there is none of that name, or it lacks a codec.

    Example
    -------
    >>> make_front_end("log_mel").dim
    160
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
