"""Encoding and decoding chunk by chunk with a causal model in torch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import StreamError, abridge
from speechbrain_focalcodec.model_files import offline_message
from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.stages import Stage, run_stages
from speechbrain_focalcodec.streaming.base import Direction, take

__all__ = ["TorchDirection", "decoding", "encoding"]

# Seconds of a long push that are coded at once.
SLICE = 30.0


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

    def __init__(self, codec: FocalCodec, encodes: bool, stages: list[Stage]):
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
        out: Any = run_stages(self.stages, x, state=state)
        return out

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


def encoding(codec: FocalCodec) -> TorchDirection:
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
    return TorchDirection(codec, True, codec.encoding())


def decoding(
    codec: FocalCodec,
    match: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> TorchDirection:
    """From tokens to samples.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.
    match : callable, optional
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

    def convert(
        feats: torch.Tensor, lengths: torch.Tensor | None
    ) -> torch.Tensor:
        assert match is not None
        return match(feats)

    stages = codec.decoding(None if match is None else convert)
    return TorchDirection(codec, False, stages)
