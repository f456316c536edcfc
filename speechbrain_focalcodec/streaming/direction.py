"""Encoding and decoding chunk by chunk with a causal model in torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from speechbrain_focalcodec.checkpoint import offline_message
from speechbrain_focalcodec.errors import StreamError, abridge
from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.streaming.base import Direction, take

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = [
    "Stage",
    "TorchDirection",
    "decoding",
    "decoding_stages",
    "encoding",
    "encoding_stages",
]

# Seconds of a long push that are coded at once.
SLICE = 30.0


@dataclass(frozen=True)
class Stage:
    """A stage of encoding or decoding.

    Arguments
    ---------
    name : str
        Name of the part of the codec.
    run : callable
        Takes (x, lengths=None, state=None) and returns x or (x, lengths).
    carries_state : bool
        Whether `run` takes `state`.
    """

    name: str
    run: Callable[..., Any]
    carries_state: bool


def encoding_stages(codec: Any) -> list[Stage]:
    """The stages from waveform to tokens.

    Arguments
    ---------
    codec : FocalCodec
        The model, or an object with the same stage methods.

    Returns
    -------
    list of Stage
        In the order in which they run.
    """
    return [
        Stage("encoder", codec.sig_to_feats, True),
        Stage("compressor", codec.feats_to_lats, True),
        Stage("quantizer", codec.lats_to_toks, False),
    ]


def decoding_stages(
    codec: Any, convert: Callable[..., Any] | None = None
) -> list[Stage]:
    """The stages from tokens to waveform.

    Arguments
    ---------
    codec : FocalCodec
        The model, or an object with the same stage methods.
    convert : callable, optional
        Applied to quantized features [B, T, C] before they are decoded.

    Returns
    -------
    list of Stage
        In the order in which they run.
    """
    return [
        Stage("quantizer", codec.toks_to_codes, False),
        Stage("decompressor", codec.codes_to_qfeats, True),
        *([] if convert is None else [Stage("convert", convert, False)]),
        Stage("decoder", codec.feats_to_sig, True),
    ]


class TorchDirection(Direction[torch.Tensor]):
    """Encoding or decoding with a causal :class:`FocalCodec`.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.
    encodes : bool
        True: samples to tokens. False: tokens to samples.
    stages : list of Stage
        The stages of this direction.

    Raises
    ------
    StreamError
        If the model is an offline one.
    """

    def __init__(self, codec: "FocalCodec", encodes: bool, stages: list[Stage]):
        if codec.chunk_length is None:
            raise StreamError(offline_message(codec.name))
        chunk_length, rate = codec.chunk_length, float(codec.sample_rate_input)
        self.dtype, self.output_dtype = torch.float32, torch.int64
        if not encodes:
            chunk_length //= codec.hop_length
            rate = codec.token_rate
            self.dtype, self.output_dtype = torch.int64, torch.float32
        chunks = max(int(SLICE * rate) // chunk_length, 1)
        super().__init__(codec, encodes, chunk_length, chunks * chunk_length)
        self.stages = stages

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.codec.device

    def array(self, x: Any) -> torch.Tensor:
        return torch.as_tensor(x)

    def convert(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach().to(self.device, self.dtype)

    def concat(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts))

    def empty_input(self) -> torch.Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def empty_output(self) -> torch.Tensor:
        return torch.empty(0, dtype=self.output_dtype, device=self.device)

    def new_state(self) -> StreamState:
        return StreamState()

    def step(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        return self.run(x[None], state)[0]

    @torch.no_grad()
    def run(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """Code chunks of a batch.

        Arguments
        ---------
        x : torch.Tensor
            Samples or tokens [B, T]: whole chunks, or the rest of a stream.
        state : StreamState
            State of the batch; updated in place.

        Returns
        -------
        torch.Tensor
            Tokens or samples [B, N].
        """
        for stage in self.stages:
            if stage.carries_state:
                x = stage.run(x, state=state)
            else:
                x = stage.run(x)
        return x

    def save(self, state: StreamState) -> dict[str, torch.Tensor]:
        return {
            "started": torch.tensor([bool(state.table)]),
            **{
                f"state.{name}": tensor.clone()
                for name, tensor in state.tensors().items()
                # Follows from the session's own flag.
                if name != "ended"
            },
        }

    def load(self, arrays: dict[str, torch.Tensor]) -> StreamState:
        started = take(arrays, "started", torch.tensor([True]), 1)
        unknown = [name for name in arrays if not name.startswith("state.")]
        if unknown:
            raise ValueError(
                f"has unknown {abridge(sorted(unknown))}; was it saved by "
                "another kind of session?"
            )
        tensors = {name.removeprefix("state."): arrays[name] for name in arrays}
        state, like = StreamState(), StreamState()
        if started:
            # A chunk of zeros tells names, shapes and types.
            self.step(self.empty_input().new_zeros(self.chunk_length), like)
        state.restore(tensors, like)
        return state


def encoding(codec: "FocalCodec") -> TorchDirection:
    """From samples to tokens.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.

    Returns
    -------
    TorchDirection
        With chunks of `codec.chunk_length` samples.

    Raises
    ------
    StreamError
        If the model is an offline one.
    """
    return TorchDirection(codec, True, encoding_stages(codec))


def decoding(
    codec: "FocalCodec",
    convert: Callable[..., torch.Tensor] | None = None,
) -> TorchDirection:
    """From tokens to samples.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.
    convert : callable, optional
        Applied to quantized features [B, T, C] before they are decoded.

    Returns
    -------
    TorchDirection
        With chunks as long as those of the encoder.

    Raises
    ------
    StreamError
        If the model is an offline one.
    """
    return TorchDirection(codec, False, decoding_stages(codec, convert))
