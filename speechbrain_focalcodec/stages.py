"""The five parts of a codec and the stages between them.

    sig -> feats -> lats -> toks / codes -> qfeats -> sig

A single pass, windows over long audio, streams and exported graphs all run the
lists of stages :meth:`Stages.encoding` and :meth:`Stages.decoding`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechbrain_focalcodec.audio.resampling import resampled_length
from speechbrain_focalcodec.checkpoint import fingerprint_of, read_parts
from speechbrain_focalcodec.config import CodecConfig, check_fit
from speechbrain_focalcodec.errors import (
    AudioError,
    CheckpointError,
    PartError,
    StreamError,
    TokenError,
)
from speechbrain_focalcodec.model_files import offline_message
from speechbrain_focalcodec.modules.bsq import to_sphere
from speechbrain_focalcodec.modules.causal import StreamState, scope
from speechbrain_focalcodec.modules.derived import DerivedFromAll
from speechbrain_focalcodec.modules.masking import check_lengths, zero_beyond
from speechbrain_focalcodec.modules.means import TimeMeans
from speechbrain_focalcodec.modules.part import Part
from speechbrain_focalcodec.modules.part_configs import VERSIONS, PartConfig
from speechbrain_focalcodec.parts import ROLES, name_of

__all__ = ["Convert", "Stage", "Staged", "Stages", "run_stages"]

# The output of a stage; with lengths, also the output's lengths.
Staged = Tensor | tuple[Tensor, Tensor]
# Applied to quantized features before they are decoded, frame by frame:
# (features [B, F, C], lengths int64 [B] or None) -> features [B, F, C].
Convert = Callable[[Tensor, Tensor | None], Tensor]
Lengths = Tensor | None
State = StreamState | None


@dataclass(frozen=True)
class Stage:
    """One step from waveform to tokens, or back.

    `run` takes ``(x, lengths=None)``, with ``state=None`` if it carries state
    between the chunks of a stream.
    """

    run: Callable[..., Staged]
    carries_state: bool


def run_stages(
    stages: Iterable[Stage],
    x: Tensor,
    lengths: Lengths = None,
    state: State = None,
) -> Staged:
    """Run stages of :meth:`Stages.encoding` or :meth:`Stages.decoding` in
    order.

    `lengths` are the absolute lengths of `x`, int64 [B]; a stream's `state` is
    updated in place. Returns the output of the last stage; with `lengths`, also
    its lengths.
    """
    out: Any = x if lengths is None else (x, lengths)
    for stage in stages:
        options = {"state": state} if stage.carries_state else {}
        out = (
            stage.run(out, **options)
            if lengths is None
            else stage.run(*out, **options)
        )
    return out


class Stages(nn.Module):
    """Five parts, the facts that follow from them, and the stages.

    A stage method takes a tensor with time on axis 1; absolute `lengths`, int64
    [B], in the unit of its input (samples, frames or tokens); and, for causal
    models, the stream's `state`. Without lengths it returns a tensor. With
    lengths it returns the tensor, zero beyond each length, and the new lengths.
    The output of an utterance does not depend on the batch. Integers in place
    of floats, NaN and wrong shapes are errors that name the argument.

    Arguments
    ---------
    encoder, compressor, quantizer, decompressor, decoder : Part
        The parts, see :mod:`speechbrain_focalcodec.modules.part`. A
        configuration in place of a part: that part cannot run, but rates,
        latency and configuration of the codec stay known.
    name : str
        Name of the model in messages and token files.

    Raises
    ------
    ValueError
        If dimensions or factors of the parts do not fit each other.
    TypeError
        If one is neither a part nor a configuration.
    """

    encoder: Any
    compressor: Any
    quantizer: Any
    decompressor: Any
    decoder: Any

    def __init__(
        self,
        encoder: Part | PartConfig,
        compressor: Part | PartConfig,
        quantizer: Part | PartConfig,
        decompressor: Part | PartConfig,
        decoder: Part | PartConfig,
        name: str = "unnamed",
    ):
        super().__init__()
        self.name = name
        parts = (encoder, compressor, quantizer, decompressor, decoder)
        self._absent: dict[str, PartConfig] = {}
        for role, part in zip(ROLES, parts, strict=True):
            if isinstance(part, PartConfig):
                self._absent[role] = part
            elif isinstance(part, Part):
                setattr(self, role, part)
            else:
                raise TypeError(
                    f"{role} must be a part of a codec (a subclass of "
                    "speechbrain_focalcodec.modules.part.Part), got "
                    f"{type(part).__name__}; FocalCodec.from_config builds a "
                    "codec from a configuration"
                )
        check_fit({role: self.facts(role) for role in ROLES})
        # File with the weights of absent parts.
        self.weights_file: Path | None = None
        self._fingerprint: str | None = None
        self._hashed = DerivedFromAll(_hash)
        # Set by acceleration.accelerate.
        self.accelerated: str | None = None
        self.autocast_dtype: torch.dtype | None = None

    def __getattr__(self, name: str) -> Any:
        if name in ROLES and name not in self._modules:
            raise PartError(
                f"{self.name} was loaded without its {name}; it has "
                f"{', '.join(self.parts)}: load it with {name} among its parts"
            )
        return super().__getattr__(name)

    # Facts

    @property
    def parts(self) -> tuple[str, ...]:
        """Roles of the parts that are loaded."""
        return tuple(role for role in ROLES if role in self._modules)

    def facts(self, role: str) -> Any:
        """The part of a role, or its configuration if it is absent."""
        return self._absent.get(role) or getattr(self, role)

    @property
    def config(self) -> CodecConfig:
        """The configuration, in the layout of `config.json`."""
        data: dict[str, Any] = {}
        for role in ROLES:
            part = self.facts(role)
            options = (
                part.options
                if isinstance(part, Part)
                else part.model_dump(exclude_unset=True)
            )
            data[f"{role}_name"] = name_of(role, part)
            data[f"{role}_config"] = options
        return CodecConfig.parse(data, self.name, VERSIONS[0], own_parts=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of configuration and weights: identifies the model.

        Tokens are valid only for the model with the same fingerprint.
        Acceleration does not change it. Weights of absent parts are read from
        disk for it.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        # Hashing a full-size model takes a second: only after a change.
        return self._hashed(self)

    def freeze_fingerprint(self) -> None:
        """Keep the present fingerprint even if the weights change."""
        self._fingerprint = self.fingerprint

    @property
    def device(self) -> torch.device:
        """Device of the weights; the CPU if there are none."""
        tensors = chain(self.parameters(), self.buffers())
        return next(tensors, torch.empty(0)).device

    @property
    def sample_rate_input(self) -> int:
        """Sample rate of the waveform to encode (Hz)."""
        return self.facts("encoder").sample_rate

    @property
    def sample_rate_output(self) -> int:
        """Sample rate of the decoded waveform (Hz)."""
        rate = self.sample_rate_input * self.facts("decoder").hop_length
        return rate // self.facts("encoder").hop_length

    @property
    def token_rate(self) -> float:
        """Tokens per second (Hz)."""
        return self.sample_rate_input / self.hop_length

    @property
    def hop_length(self) -> int:
        """Input samples per token."""
        factors = self.facts("compressor").downscale_factors
        return self.facts("encoder").hop_length * math.prod(factors)

    @property
    def output_hop_length(self) -> int:
        """Output samples per token."""
        factors = self.facts("decompressor").upscale_factors
        return self.facts("decoder").hop_length * math.prod(factors)

    @property
    def bitrate(self) -> float:
        """Bits per second."""
        return self.token_rate * self.quantizer.dim

    @property
    def codebook_size(self) -> int:
        """Size of the codebook."""
        return self.quantizer.codebook_size

    @property
    def codebook(self) -> Tensor:
        """All codes [codebook_size, d], in the order of their tokens."""
        return self.quantizer.codebook

    @property
    def causal(self) -> bool:
        """Whether every part can run on a stream."""
        return all(
            self.facts(role).causal for role in ROLES if role != "quantizer"
        )

    @property
    def chunk_length(self) -> int | None:
        """Input samples of one chunk of a stream; None when offline."""
        if not self.causal:
            return None
        encoder = self.facts("encoder")
        frames = math.lcm(
            encoder.chunk,
            self.facts("decompressor").chunk,
            math.prod(self.facts("compressor").downscale_factors),
        )
        return frames * encoder.hop_length

    @property
    def latency(self) -> float | None:
        """Length of one chunk of a stream (ms); None when offline."""
        if self.chunk_length is None:
            return None
        return 1000 * self.chunk_length / self.sample_rate_input

    def num_tokens(self, num_samples: int) -> int:
        """Number of tokens (at least 1) for a number of input samples."""
        frames = self.encoder.output_lengths(torch.tensor(num_samples))
        return int(self.compressor.output_lengths(frames))

    def output_num_samples(self, num_samples: Any) -> Any:
        """Output samples with the duration of some input samples, rounded up.

        Takes an int, or lengths int64 [B]; returns the same kind.
        """
        return resampled_length(
            num_samples, self.sample_rate_input, self.sample_rate_output
        )

    # Stages

    def encoding(self) -> list[Stage]:
        """Stages from waveform to tokens, in order."""
        return [
            Stage(self.sig_to_feats, True),
            Stage(self.feats_to_lats, True),
            Stage(self.lats_to_toks, False),
        ]

    def decoding(self, convert: Convert | None = None) -> list[Stage]:
        """Stages from tokens to waveform, in order; the last one is the
        decoder.

        `convert` is applied to quantized features [B, F, C] before they are
        decoded.
        """

        def convert_stage(feats, lengths=None):
            assert convert is not None
            feats = convert(feats, lengths)
            return feats if lengths is None else (feats, lengths)

        return [
            Stage(self.toks_to_codes, False),
            Stage(self.codes_to_qfeats, True),
            *([] if convert is None else [Stage(convert_stage, False)]),
            Stage(self.feats_to_sig, True),
        ]

    def sig_to_feats(
        self, sig: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Waveform [B, T] within [-1, 1] to features [B, F, C].

        In a stream, the length of each chunk except the last is a multiple of
        `chunk_length`.
        """
        check_floats(sig, "sig", lengths)
        size = None if state is None else self.chunk_length
        if state is not None and size is not None:
            for _, stream in state.streams():
                if stream.get("ended") is not None:
                    raise ValueError(
                        f"the chunk before was no multiple of {size} samples "
                        "(chunk_length), which ends a stream; start a new one "
                        "with a new StreamState"
                    )
                if sig.shape[1] % size:
                    stream["ended"] = torch.ones(1)
        return self._run("encoder", sig, lengths, state)

    def feats_to_lats(
        self, feats: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Features [B, F, C] to latents [B, N, d] on the unit sphere."""
        compressor = self.compressor
        check_floats(feats, "feats", lengths, compressor.input_dim)

        def compress(x, lengths, state=None):
            return to_sphere(compressor(x, lengths, state))

        return self._run("compressor", feats, lengths, state, compress)

    def lats_to_toks(self, lats: Tensor, lengths: Lengths = None) -> Staged:
        """Latents [B, N, d] to tokens, int64 [B, N]."""
        check_floats(lats, "lats", lengths, self.quantizer.dim)
        return _pointwise(self.quantizer.lats_to_toks, lats, lengths)

    def lats_to_codes(self, lats: Tensor, lengths: Lengths = None) -> Staged:
        """Latents [B, N, d] to codes [B, N, d], each +-1/sqrt(d)."""
        check_floats(lats, "lats", lengths, self.quantizer.dim)
        return _pointwise(self.quantizer.lats_to_codes, lats, lengths)

    def toks_to_codes(self, toks: Tensor, lengths: Lengths = None) -> Staged:
        """Tokens, int64 [B, N], to codes [B, N, d]."""
        toks = self.check_toks(toks, lengths)
        return _pointwise(self.quantizer.toks_to_codes, toks, lengths)

    def codes_to_toks(self, codes: Tensor, lengths: Lengths = None) -> Staged:
        """Codes [B, N, d] to tokens, int64 [B, N]."""
        check_floats(codes, "codes", lengths, self.quantizer.dim)
        return self.lats_to_toks(codes, lengths)

    def codes_to_qfeats(
        self, codes: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Codes [B, N, d] to quantized features [B, F, C]."""
        check_floats(codes, "codes", lengths, self.quantizer.dim)
        return self._run("decompressor", codes, lengths, state)

    def feats_to_sig(
        self, feats: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Features [B, F, C] to waveform [B, F * hop length of the decoder]."""
        check_floats(feats, "feats", lengths, self.decoder.input_dim)
        return self._run("decoder", feats, lengths, state)

    # Several stages in a single pass

    def sig_to_toks(
        self, sig: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Waveform [B, T] to tokens, int64 [B, N]."""
        return run_stages(self.encoding(), sig, lengths, state)

    def sig_to_codes(
        self, sig: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Waveform [B, T] to codes [B, N, d]."""
        stages = [*self.encoding()[:-1], Stage(self.lats_to_codes, False)]
        return run_stages(stages, sig, lengths, state)

    def sig_to_qfeats(
        self, sig: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Waveform [B, T] to quantized features [B, F, C]."""
        stages = [
            Stage(self.sig_to_codes, True),
            Stage(self.codes_to_qfeats, True),
        ]
        return run_stages(stages, sig, lengths, state)

    def toks_to_qfeats(
        self, toks: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Tokens, int64 [B, N], to quantized features [B, F, C]."""
        return run_stages(self.decoding()[:-1], toks, lengths, state)

    def toks_to_sig(
        self, toks: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Tokens, int64 [B, N], to waveform [B, T]."""
        return run_stages(self.decoding(), toks, lengths, state)

    def codes_to_sig(
        self, codes: Tensor, lengths: Lengths = None, state: State = None
    ) -> Staged:
        """Codes [B, N, d] to waveform [B, T]."""
        return run_stages(self.decoding()[1:], codes, lengths, state)

    def check_toks(
        self, toks: Tensor, lengths: Lengths = None, name: str = "lengths"
    ) -> Tensor:
        """Check tokens, integers [B, N].

        Returns them as int64 [B, N], 0 beyond `lengths` (int64 [B], called
        `name` in messages); values beyond the lengths are not checked. A token
        outside [0, codebook_size) raises TokenError, a wrong shape ValueError.
        """
        check_rank(toks, 2, "toks", "[B, N]")
        if toks.is_floating_point() or toks.is_complex():
            raise TokenError(f"toks must be integers, got {toks.dtype}")
        if lengths is not None:
            lengths = check_lengths(lengths, toks, name)
        toks = zero_beyond(toks.long(), lengths)
        low, high = torch.stack(toks.aminmax()).tolist()
        if low < 0 or high >= self.codebook_size:
            raise TokenError(
                f"toks must lie in 0..{self.codebook_size - 1} for "
                f"{self.name}, got {low}..{high}; were they made by another "
                "model?"
            )
        return toks

    def _run(
        self,
        role: str,
        x: Tensor,
        lengths: Lengths,
        state: State,
        run: Callable[..., Tensor] | None = None,
    ) -> Staged:
        """Run one part; with lengths, zero its padding and count anew."""
        part = getattr(self, role)
        if lengths is not None:
            lengths = check_lengths(lengths, x, "lengths")
        y = self.run_part(run or part, x, lengths, state, role)
        if lengths is None:
            return y
        lengths = part.output_lengths(lengths)
        return zero_beyond(y, lengths, in_place=role != "decoder"), lengths

    def run_part(
        self, module: Any, x: Tensor, lengths: Lengths, state: State, role: str
    ) -> Tensor:
        """Run a part, or a layer of it, with this codec's autocast.

        `module` is called with (x, lengths), and with `state` if there is one:
        that of a stream, seen through the prefix `role`, or the means over
        whole utterances. The output's values beyond the lengths are arbitrary.
        Raises StreamError for a stream's state if the model is offline.
        """
        if (
            state is not None
            and not self.causal
            and not isinstance(state, TimeMeans)
        ):
            raise StreamError(offline_message(self.name))
        options = () if state is None else (scope(state, role),)
        if self.autocast_dtype is None:
            return module(x, lengths, *options)
        with torch.autocast(x.device.type, self.autocast_dtype):
            return module(x, lengths, *options)


def _hash(codec: Stages) -> str:
    """SHA-256 (hex) over configuration and weights."""
    weights, config = codec.state_dict(), codec.config
    absent = [role for role in ROLES if role not in codec.parts]
    if absent:
        if codec.weights_file is None:
            raise CheckpointError(
                f"{codec.name} was made without its {', '.join(absent)}: it "
                "has no fingerprint"
            )
        weights |= read_parts(config, codec.weights_file, absent)
    return fingerprint_of(config.identity(), weights)


def _pointwise(
    function: Callable[[Tensor], Tensor], x: Tensor, lengths: Lengths
) -> Staged:
    """Apply a function that treats each time step by itself."""
    if lengths is None:
        return function(x)
    lengths = check_lengths(lengths, x, "lengths")
    return zero_beyond(function(x), lengths, in_place=True), lengths


def check_rank(x: Tensor, rank: int, name: str, shape: str) -> None:
    """Raise unless `x` is a non-empty tensor of this rank."""
    if not isinstance(x, torch.Tensor) or x.ndim != rank or 0 in x.shape:
        got = list(x.shape) if isinstance(x, torch.Tensor) else type(x)
        raise ValueError(
            f"{name} must be a tensor {shape} that is not empty, got {got}"
        )


def check_floats(
    x: Tensor, name: str, lengths: Lengths, dim: int | None = None
) -> None:
    """Raise unless `x` is a waveform, or frames of `dim` channels."""
    if dim is None:
        check_rank(x, 2, name, "[B, T]")
    else:
        shape = "[B, T, C]" if name == "feats" else "[B, N, d]"
        check_rank(x, 3, name, shape)
    if not x.is_floating_point():
        advice = "; divide integer samples by their full scale"
        raise ValueError(
            f"{name} must be floats, got {x.dtype}" + advice * (dim is None)
        )
    if dim not in (None, x.shape[-1]):
        raise ValueError(
            f"{name} must have {dim} channels, [B, T, {dim}], in this model, "
            f"got {list(x.shape)}"
        )
    # Training counts losses that are not finite.
    is_trained = x.requires_grad and torch.is_grad_enabled()
    if is_trained or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    # NaN and infinity carry over to the sum, which is faster to check.
    if math.isfinite(x.detach().sum()):
        return
    if lengths is not None:
        x = zero_beyond(x, check_lengths(lengths, x, "lengths"))
    if not bool(x.isfinite().all()):
        error = AudioError if dim is None else ValueError
        raise error(f"{name} has NaN or infinite values; find their source")
