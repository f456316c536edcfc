"""What is exported: from a waveform to tokens, and back.

For offline models a graph takes whole utterances, for causal ones a chunk and
what the chunk before left.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from speechbrain_focalcodec.modules.bsq import to_sphere
from speechbrain_focalcodec.modules.causal import (
    StepState,
    StreamState,
    scope,
)
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.onnx.layers import exportable
from speechbrain_focalcodec.onnx.step_layers import StartState, steppable

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["DecoderGraph", "EncoderGraph", "StepGraph"]


class EncoderGraph(nn.Module):
    """Waveform to tokens, of an offline codec or of a chunk.

    Arguments
    ---------
    codec : FocalCodec
        The model; left as it is.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> graph = EncoderGraph(FocalCodec.from_pretrained("focalcodec_mini_50hz"))
    >>> graph(torch.randn(2, 640), torch.tensor([640, 320]))[1]
    tensor([2, 1])
    """

    def __init__(self, codec: "FocalCodec"):
        super().__init__()
        max_distance = getattr(codec.config.encoder_config, "max_distance", 0)
        convert = steppable if codec.causal else exportable
        self.encoder = convert(codec.encoder, max_distance)
        self.compressor = convert(codec.compressor)
        self.quantizer = convert(codec.quantizer)

    def forward(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor,
        state: StreamState | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].
        state : StreamState, optional
            Of a causal codec, always.

        Returns
        -------
        toks : torch.Tensor
            Tokens, int64 [B, N], 0 beyond each length.
        tok_lengths : torch.Tensor
            Tokens, int64 [B].
        """
        feats = self.encoder(sig, lengths, scope(state, "encoder"))
        lengths = self.encoder.output_lengths(lengths)
        lats = self.compressor(
            zero_beyond(feats, lengths), lengths, scope(state, "compressor")
        )
        lengths = self.compressor.output_lengths(lengths)
        toks = self.quantizer.lats_to_toks(to_sphere(lats))
        return zero_beyond(toks, lengths), lengths


class DecoderGraph(nn.Module):
    """Tokens to waveform, of an offline codec or of a chunk.

    Arguments
    ---------
    codec : FocalCodec
        The model; left as it is.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> graph = DecoderGraph(FocalCodec.from_pretrained("focalcodec_mini_50hz"))
    >>> graph(torch.tensor([[5, 6], [7, 0]]), torch.tensor([2, 1]))[0].shape
    torch.Size([2, 640])
    """

    def __init__(self, codec: "FocalCodec"):
        super().__init__()
        convert = steppable if codec.causal else exportable
        self.quantizer = convert(codec.quantizer)
        self.decompressor = convert(codec.decompressor)
        self.decoder = convert(codec.decoder)

    def forward(
        self,
        toks: torch.Tensor,
        tok_lengths: torch.Tensor,
        state: StreamState | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode.

        Arguments
        ---------
        toks : torch.Tensor
            Tokens, int64 [B, N].
        tok_lengths : torch.Tensor
            Tokens, int64 [B].
        state : StreamState, optional
            Of a causal codec, always.

        Returns
        -------
        sig : torch.Tensor
            Waveform [B, T], 0 beyond each length.
        sig_lengths : torch.Tensor
            Samples, int64 [B].
        """
        lengths = tok_lengths
        codes = self.quantizer.toks_to_codes(zero_beyond(toks, lengths))
        qfeats = self.decompressor(
            zero_beyond(codes, lengths), lengths, scope(state, "decompressor")
        )
        lengths = self.decompressor.output_lengths(lengths)
        sig = self.decoder(
            zero_beyond(qfeats, lengths), lengths, scope(state, "decoder")
        )
        lengths = lengths * self.decoder.hop_length
        return zero_beyond(sig, lengths), lengths


class StepGraph(nn.Module):
    """One chunk of a stream, and all that is carried to the next.

    Arguments
    ---------
    part : EncoderGraph or DecoderGraph
        Of a causal codec.
    codec : FocalCodec
        That codec.
    x : torch.Tensor
        Samples or tokens [1, N] of a chunk.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> step = StepGraph.decoder(codec)
    >>> sig, lengths, seen, *kept = step(
    ...     torch.zeros(1, 4).long(),
    ...     torch.tensor([4]),
    ...     torch.tensor([0]),
    ...     list(step.start.values()),
    ... )
    >>> sig.shape, lengths, seen
    (torch.Size([1, 1920]), tensor([1920]), tensor([4]))
    """

    def __init__(self, part: nn.Module, codec: "FocalCodec", x: torch.Tensor):
        super().__init__()
        assert codec.chunk_length is not None
        self.part = part
        #: Input steps: samples or tokens.
        self.chunk_length = x.shape[1]
        #: Feature frames of a chunk.
        self.frames = codec.chunk_length // codec.encoder.hop_length
        state = StartState()
        with torch.no_grad():
            part(x, torch.tensor([self.chunk_length]), state)
        #: State of a new stream: zeros [1, ...] by name.
        self.start = state.kept

    @classmethod
    def encoder(cls, codec: "FocalCodec") -> "StepGraph":
        """The step of samples to tokens.

        Arguments
        ---------
        codec : FocalCodec
            A causal model; left as it is.

        Returns
        -------
        StepGraph
            The step.
        """
        assert codec.chunk_length is not None
        x = torch.zeros(1, codec.chunk_length)
        return cls(EncoderGraph(codec), codec, x)

    @classmethod
    def decoder(cls, codec: "FocalCodec") -> "StepGraph":
        """The step of tokens to samples.

        Arguments
        ---------
        codec : FocalCodec
            A causal model; left as it is.

        Returns
        -------
        StepGraph
            The step.
        """
        assert codec.chunk_length is not None
        size = codec.chunk_length // codec.hop_length
        x = torch.zeros(1, size, dtype=torch.int64)
        return cls(DecoderGraph(codec), codec, x)

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor,
        seen: torch.Tensor,
        kept: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Code a chunk.

        Arguments
        ---------
        x : torch.Tensor
            Samples or tokens [B, chunk_length].
        lengths : torch.Tensor
            How many of them are some, int64 [B]; fewer in a last chunk.
        seen : torch.Tensor
            Feature frames before it, int64 [B]; 0 in streams that begin.
        kept : list of torch.Tensor
            State in the order of `start`, [B, ...] each.

        Returns
        -------
        tuple of torch.Tensor
            Tokens or samples [B, N], how many of them are some, `seen` and
            the state for the next chunk.
        """
        state = StepState(dict(zip(self.start, kept, strict=True)), seen)
        y, lengths = self.part(x, lengths, state)
        after = [state.table[name] for name in self.start]
        return y, lengths, seen + self.frames, *after
