"""The graphs that are exported: from waveform to tokens, and back.

A graph of an offline model takes whole utterances. A graph of a causal model
takes one chunk and the state of its stream.
"""

from typing import Any

import torch
from torch import nn

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.modules.bsq import to_sphere
from speechbrain_focalcodec.modules.causal import (
    StepState,
    StreamState,
    scope,
)
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.onnx.layers import exportable
from speechbrain_focalcodec.onnx.step_layers import StartState, steppable
from speechbrain_focalcodec.stages import Stage, Stages, run_stages

__all__ = ["DecoderGraph", "EncoderGraph", "StepGraph"]

Coded = tuple[torch.Tensor, torch.Tensor]


class _CodecGraph(nn.Module):
    """Copies of a codec's parts, with its stage methods less their checks."""

    encoder: Any
    compressor: Any
    quantizer: Any
    decompressor: Any
    decoder: Any

    def __init__(self, codec: FocalCodec, parts: tuple[str, ...]):
        super().__init__()
        max_distance = getattr(codec.config.encoder_config, "max_distance", 0)
        convert = steppable if codec.causal else exportable
        for name in parts:
            setattr(self, name, convert(getattr(codec, name), max_distance))

    def stages(self) -> list[Stage]:
        raise NotImplementedError

    def forward(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor,
        state: StreamState | None = None,
    ) -> Coded:
        """Run all stages.

        Arguments
        ---------
        x : torch.Tensor
            Waveform [B, T] or tokens, int64 [B, N].
        lengths : torch.Tensor
            Samples or tokens, int64 [B].
        state : StreamState, optional
            State of a causal codec, which always needs it.

        Returns
        -------
        y : torch.Tensor
            Tokens, int64 [B, N], or waveform [B, T]; 0 beyond each length.
        lengths : torch.Tensor
            Tokens or samples, int64 [B].
        """
        out: Any = run_stages(self.stages(), x, lengths, state)
        return out

    # The stages, as in `Stages`.

    def sig_to_feats(
        self, sig: torch.Tensor, lengths: torch.Tensor, state: Any = None
    ) -> Coded:
        feats = self.encoder(sig, lengths, scope(state, "encoder"))
        lengths = self.encoder.output_lengths(lengths)
        return zero_beyond(feats, lengths), lengths

    def feats_to_lats(
        self, feats: torch.Tensor, lengths: torch.Tensor, state: Any = None
    ) -> Coded:
        lats = self.compressor(feats, lengths, scope(state, "compressor"))
        return to_sphere(lats), self.compressor.output_lengths(lengths)

    def lats_to_toks(self, lats: torch.Tensor, lengths: torch.Tensor) -> Coded:
        return zero_beyond(self.quantizer.lats_to_toks(lats), lengths), lengths

    def toks_to_codes(self, toks: torch.Tensor, lengths: torch.Tensor) -> Coded:
        codes = self.quantizer.toks_to_codes(zero_beyond(toks, lengths))
        return zero_beyond(codes, lengths), lengths

    def codes_to_qfeats(
        self, codes: torch.Tensor, lengths: torch.Tensor, state: Any = None
    ) -> Coded:
        qfeats = self.decompressor(codes, lengths, scope(state, "decompressor"))
        lengths = self.decompressor.output_lengths(lengths)
        return zero_beyond(qfeats, lengths), lengths

    def feats_to_sig(
        self, feats: torch.Tensor, lengths: torch.Tensor, state: Any = None
    ) -> Coded:
        sig = self.decoder(feats, lengths, scope(state, "decoder"))
        lengths = lengths * self.decoder.hop_length
        return zero_beyond(sig, lengths), lengths


class EncoderGraph(_CodecGraph):
    """Waveform to tokens, of whole utterances or of a chunk.

    Arguments
    ---------
    codec : FocalCodec
        The model; it is left unchanged.
    """

    def __init__(self, codec: FocalCodec):
        super().__init__(codec, ("encoder", "compressor", "quantizer"))

    def stages(self) -> list[Stage]:
        codec: Any = self
        return Stages.encoding(codec)


class DecoderGraph(_CodecGraph):
    """Tokens to waveform, of whole utterances or of a chunk.

    Arguments
    ---------
    codec : FocalCodec
        The model; it is left unchanged.
    """

    def __init__(self, codec: FocalCodec):
        super().__init__(codec, ("quantizer", "decompressor", "decoder"))

    def stages(self) -> list[Stage]:
        codec: Any = self
        return Stages.decoding(codec)


class StepGraph(nn.Module):
    """One chunk of a stream, with the state as inputs and outputs.

    Arguments
    ---------
    part : EncoderGraph or DecoderGraph
        Graph of a causal codec.
    codec : FocalCodec
        That codec.
    x : torch.Tensor
        A chunk of samples or tokens [1, N].
    """

    def __init__(self, part: nn.Module, codec: FocalCodec, x: torch.Tensor):
        super().__init__()
        assert codec.chunk_length is not None
        self.part = part
        #: Input length: samples or tokens.
        self.chunk_length = x.shape[1]
        #: Feature frames of a chunk.
        self.frames = codec.chunk_length // codec.encoder.hop_length
        state = StartState()
        with torch.no_grad():
            part(x, torch.tensor([self.chunk_length]), state)
        #: State of a new stream: zeros [1, ...] by name.
        self.start = state.kept

    @classmethod
    def encoder(cls, codec: FocalCodec) -> "StepGraph":
        """The step from samples to tokens."""
        assert codec.chunk_length is not None
        x = torch.zeros(1, codec.chunk_length)
        return cls(EncoderGraph(codec), codec, x)

    @classmethod
    def decoder(cls, codec: FocalCodec) -> "StepGraph":
        """The step from tokens to samples."""
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
            Samples or tokens, int64 [B]; less than `chunk_length` only in
            the last chunk of a stream.
        seen : torch.Tensor
            Feature frames before the chunk, int64 [B]; 0 in new streams.
        kept : list of torch.Tensor
            State [B, ...] in the order of `start`.

        Returns
        -------
        tuple of torch.Tensor
            Tokens or samples [B, N], their lengths, `seen` and the state for
            the next chunk.
        """
        state = StepState(dict(zip(self.start, kept, strict=True)), seen)
        y, lengths = self.part(x, lengths, state)
        after = [state.table[name] for name in self.start]
        return y, lengths, seen + self.frames, *after
