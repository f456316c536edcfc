"""One way through a causal model, encoding or decoding, chunk by chunk."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from speechbrain_focalcodec.audio.gate import check_sig
from speechbrain_focalcodec.errors import StreamError
from speechbrain_focalcodec.model_files import offline_message
from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.modules.ring import Ring

if TYPE_CHECKING:
    from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["Direction", "decoding", "encoding"]

# A stage of the codec, and whether it carries state.
Stage = tuple[Callable[..., Any], bool]


class Direction:
    """One way through a causal model: encoding or decoding.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.
    chunk_length : int
        Input steps of a chunk: samples or tokens.
    check : callable
        From what a caller gave to a tensor [T], or an error.
    stages : list of (callable, bool)
        Stages of the codec, and which of them carry state.
    dtypes : tuple of torch.dtype
        Of the input and of the output.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> encoding(codec).chunk_length, decoding(codec).chunk_length
    (1280, 4)
    """

    def __init__(
        self,
        codec: "FocalCodec",
        chunk_length: int,
        check: Callable[[Any], torch.Tensor],
        stages: list[Stage],
        dtypes: tuple[torch.dtype, torch.dtype],
    ):
        self.codec = codec
        self.chunk_length = chunk_length
        self.check = check
        self.stages = stages
        self.dtype, self.output_dtype = dtypes

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.codec.device

    @torch.no_grad()
    def run(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """Code some chunks.

        Arguments
        ---------
        x : torch.Tensor
            Samples or tokens [B, T], a multiple of `chunk_length`; a last
            call may have any length.
        state : StreamState
            Carried from call to call.

        Returns
        -------
        torch.Tensor
            Tokens or samples [B, N].
        """
        for stage, carries in self.stages:
            x = stage(x, state=state) if carries else stage(x)
        return x

    def step(
        self, x: torch.Tensor, lengths: torch.Tensor, state: StreamState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Code one chunk of a fixed size, for export.

        Arguments
        ---------
        x : torch.Tensor
            Samples or tokens [B, chunk_length].
        lengths : torch.Tensor
            How many of them are some, int64 [B]; fewer in a last chunk.
        state : StreamState
            Carried from call to call.

        Returns
        -------
        y : torch.Tensor
            Tokens or samples [B, N].
        lengths : torch.Tensor
            How many of them are some, int64 [B].
        """
        for stage, carries in self.stages:
            if carries:
                x, lengths = stage(x, lengths, state=state)
            else:
                x = stage(x)
        return x, lengths

    def start(self) -> dict[str, torch.Tensor]:
        """What a :class:`StepState` starts with.

        Returns
        -------
        dict
            Zeros [1, ...] by name.
        """
        return {
            name: kept.whole() if isinstance(kept, Ring) else kept.zero_()
            for name, kept in self.template().table.items()
        }

    def empty(self) -> torch.Tensor:
        """What nothing gives.

        Returns
        -------
        torch.Tensor
            [0].
        """
        return torch.empty(0, dtype=self.output_dtype, device=self.device)

    def template(self) -> StreamState:
        """A state as it is after a chunk: names, shapes and types.

        Returns
        -------
        StreamState
            Of one stream.
        """
        state = StreamState()
        chunk = torch.zeros(1, self.chunk_length, dtype=self.dtype)
        self.run(chunk.to(self.device), state)
        return state


def encoding(codec: "FocalCodec") -> Direction:
    """From samples to tokens.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.

    Returns
    -------
    Direction
        Of chunks of `codec.chunk_length` samples.

    Raises
    ------
    StreamError
        If the model is an offline one.
    """
    chunk_length = _check_causal(codec)

    def check(sig: Any) -> torch.Tensor:
        sig = torch.as_tensor(sig)
        if sig.ndim == 1 and sig.is_floating_point() and not len(sig):
            return sig
        check_sig(sig, ndim=1)
        return sig

    stages: list[Stage] = [
        (codec.sig_to_feats, True),
        (codec.feats_to_lats, True),
        (codec.lats_to_toks, False),
    ]
    dtypes = torch.float32, torch.int64
    return Direction(codec, chunk_length, check, stages, dtypes)


def decoding(
    codec: "FocalCodec",
    match: Callable[..., torch.Tensor] | None = None,
) -> Direction:
    """From tokens to samples.

    Arguments
    ---------
    codec : FocalCodec
        A causal model.
    match : callable, optional
        What is done to quantized features [B, T, C] before they are decoded.

    Returns
    -------
    Direction
        Of chunks as long as those of the encoder.

    Raises
    ------
    StreamError
        If the model is an offline one.
    """
    chunk_length = _check_causal(codec) // codec.hop_length

    def check(toks: Any) -> torch.Tensor:
        toks = torch.as_tensor(toks)
        if toks.ndim != 1:
            raise ValueError(
                f"toks: must be [N], but its shape is {list(toks.shape)}"
            )
        if not len(toks):
            return toks.long()
        return codec.check_toks(toks[None])[0]

    stages: list[Stage] = [
        (codec.quantizer.toks_to_codes, False),
        (codec.codes_to_qfeats, True),
        *([] if match is None else [(match, False)]),
        (codec.feats_to_sig, True),
    ]
    dtypes = torch.int64, torch.float32
    return Direction(codec, chunk_length, check, stages, dtypes)


def _check_causal(codec: "FocalCodec") -> int:
    """The model's chunk (samples), or an error that tells what streams."""
    if codec.chunk_length is None:
        raise StreamError(offline_message(codec.name))
    return codec.chunk_length
