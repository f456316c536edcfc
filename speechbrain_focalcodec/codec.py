"""FocalCodec: the five parts composed, stage by stage.

    sig -> feats -> lats -> toks / codes -> qfeats -> sig

Stages take and give tensors with time on axis 1. Each takes optional absolute
lengths, int64 [B], in its own unit (samples, frames or tokens). Without
lengths a stage returns a tensor; with lengths it returns the tensor, zero
beyond each length, and the new lengths. What an utterance gives does not
depend on the batch it is in. Integers in place of floats, NaN and shapes that
do not fit are errors that name the argument.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechbrain_focalcodec import checkpoint
from speechbrain_focalcodec.audio.files import resampled_length
from speechbrain_focalcodec.config import CodecConfig
from speechbrain_focalcodec.errors import (
    AudioError,
    PartError,
    StreamError,
    TokenError,
)
from speechbrain_focalcodec.hub import HubOptions
from speechbrain_focalcodec.long_audio import engine as windowed
from speechbrain_focalcodec.long_audio.schedule import Convert
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW
from speechbrain_focalcodec.modules.bsq import (
    BinarySphericalQuantizer,
    to_sphere,
)
from speechbrain_focalcodec.modules.causal import StreamState, scope
from speechbrain_focalcodec.modules.compressor import FocalDecoder, FocalEncoder
from speechbrain_focalcodec.modules.derived import DerivedFromAll
from speechbrain_focalcodec.modules.masking import (
    check_lengths,
    zero_beyond,
)
from speechbrain_focalcodec.modules.means import TimeMeans
from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.modules.part_configs import PART_CONFIGS
from speechbrain_focalcodec.modules.vocos import Vocos
from speechbrain_focalcodec.modules.wavenext import WaveNeXt
from speechbrain_focalcodec.modules.wavlm import WavLM

if TYPE_CHECKING:
    from speechbrain_focalcodec.voice.reference import VoiceReference

__all__ = ["FocalCodec"]

PARTS: dict[str, type[nn.Module]] = {
    "WavLM": WavLM,
    "LogMel": LogMel,
    "FocalEncoder": FocalEncoder,
    "BinarySphericalQuantizer": BinarySphericalQuantizer,
    "FocalDecoder": FocalDecoder,
    "Vocos": Vocos,
    "WaveNeXt": WaveNeXt,
}

# Options that a configuration carries and no module needs.
UNUSED_OPTIONS = {"max_cached_steps", "use_flex_attention"}

Staged = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class FocalCodec(nn.Module):
    """Speech to tokens and back.

    Under :class:`torch.no_grad` (or inference mode) it is faster on a CPU:
    layouts that no gradient could follow are used then. `half`, `bfloat16`
    and `double` change all weights; :func:`acceleration.accelerate` keeps more
    of the tokens in bfloat16.

    Arguments
    ---------
    config : dict or CodecConfig
        In the layout of `config.json`; for what is left out see
        :func:`speechbrain_focalcodec.config.fill_defaults`.
    name : str
        What the model is called in messages and token files.
    parts : sequence of str, optional
        Names of the parts to have, such as ``("decompressor", "decoder")``;
        all by default. The quantizer, which has no weights, is always there.

    Raises
    ------
    ConfigError
        If `config` does not fit the schema.
    ValueError
        If `parts` is empty or names no part.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> sig = torch.randn(2, 16000)
    >>> toks, tok_lengths = codec.encode(sig, torch.tensor([16000, 8000]))
    >>> toks.shape, tok_lengths
    (torch.Size([2, 50]), tensor([50, 25]))
    >>> rec, rec_lengths = codec.decode(toks, tok_lengths)
    >>> rec.shape, rec_lengths
    (torch.Size([2, 16000]), tensor([16000,  8000]))
    """

    encoder: Any
    compressor: Any
    quantizer: Any
    decompressor: Any
    decoder: Any

    def __init__(
        self,
        config: dict[str, Any] | CodecConfig,
        name: str = "unnamed",
        parts: Sequence[str] | None = None,
    ):
        super().__init__()
        self.config = CodecConfig.parse(config)
        self.name = name
        parts = tuple(PART_CONFIGS if parts is None else parts)
        if not parts or not set(parts) <= PART_CONFIGS.keys():
            raise ValueError(
                f"parts must be some of {', '.join(PART_CONFIGS)}, got {parts}"
            )
        for role in PART_CONFIGS:
            if role in parts or role == "quantizer":
                setattr(self, role, self._build(role))
        # Where the weights of absent parts are.
        self.weights_file: Path | None = None
        # What acceleration.accelerate changed, and what it leaves behind.
        self.accelerated: str | None = None
        self.autocast_dtype: torch.dtype | None = None
        self._fingerprint: str | None = None
        self._hashed = DerivedFromAll(_hash)

    def __getattr__(self, name: str) -> Any:
        if name in PART_CONFIGS and name not in self._modules:
            raise PartError(
                f"{self.name} was loaded without its {name}; it has "
                f"{', '.join(self.parts)}: load it with {name} among its parts"
            )
        return super().__getattr__(name)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that it has."""
        return tuple(role for role in PART_CONFIGS if role in self._modules)

    def _build(self, role: str) -> Any:
        """One part, from the table, with the options of its config."""
        options = getattr(self.config, f"{role}_config").model_dump()
        kept = {k: v for k, v in options.items() if k not in UNUSED_OPTIONS}
        return PARTS[getattr(self.config, f"{role}_name")](**kept)

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        device: str | torch.device | None = None,
        *,
        parts: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> "FocalCodec":
        """Load a model; executes nothing that was downloaded.

        Arguments
        ---------
        source : str or Path
            Name of a bundled model; a local folder or a repository on the
            Hugging Face hub with `config.json` and `model.safetensors`
            (either published format); or a configuration in one of these,
            such as ``folder/config_x.json`` or ``owner/name/config_x.json``,
            with weights of the same name beside it (config_x.safetensors).
        revision : str, optional
            Hub only: commit, tag or branch. The six releases are pinned when
            it is not given.
        device : str or torch.device, optional
            Where to put the model; the CPU by default.
        parts : sequence of str, optional
            The parts to load, such as ``("decompressor", "decoder")``: the
            weights of the others are not read. All by default.
        cache_dir : str or Path, optional
            Hub only: folder of the local cache.
        local_files_only : bool
            Hub only: whether to use the local cache alone.
        token : str or bool, optional
            Hub only: for a private repository.

        Returns
        -------
        FocalCodec
            In eval mode.

        Raises
        ------
        ConfigError
            If the configuration is missing or does not fit the schema, or
            leaves out options and no published default fits the weights.
        CheckpointError
            If the source cannot be found or fetched, or a weight is missing,
            unexpected or of another shape; if the weights are pickled, or a
            revision is given for what is not on the hub.
        ValueError
            If `parts` is empty or names no part.

        Example
        -------
        >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
        >>> codec.bitrate
        650.0
        """
        options: HubOptions = {
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
        }
        files = checkpoint.find_model(source, revision, options)
        codec = checkpoint.load_codec(cls, files, parts)
        return codec.to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the v0.0.2 format.

        Arguments
        ---------
        folder : str or Path
            Made when missing.

        Raises
        ------
        PartError
            If the model was loaded without some of its parts.
        ValueError
            If the model was accelerated: its weights are no longer exact.

        Example
        -------
        >>> folder = getfixture("tmp_path") / "model"
        >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
        >>> codec.save_pretrained(folder)
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.safetensors']
        """
        if self.accelerated:
            raise ValueError(
                f"{self.name} was accelerated ({self.accelerated}), which "
                "rounds its weights; save the model before that"
            )
        checkpoint.save_codec(self, folder)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over configuration and weights: the model's identity.

        Tokens mean something only to the model with the same fingerprint.
        Acceleration does not change it. A model that was loaded without some
        of its parts reads them for it.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        # Hashing takes a second at full size: again only after a change.
        return self._hashed(self)

    def keep_fingerprint(self) -> None:
        """Keep the present identity, whatever becomes of the weights."""
        self._fingerprint = self.fingerprint

    # Facts

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU if it has none."""
        tensors = chain(self.parameters(), self.buffers())
        return next(tensors, torch.empty(0)).device

    @property
    def sample_rate_input(self) -> int:
        """Sample rate of the waveform to encode (Hz)."""
        return self.config.encoder_config.sample_rate

    @property
    def sample_rate_output(self) -> int:
        """Sample rate of the decoded waveform (Hz)."""
        rate = self.sample_rate_input * self.config.decoder_config.hop_length
        return rate // self.config.encoder_config.hop_length

    @property
    def token_rate(self) -> float:
        """Tokens a second (Hz)."""
        return self.sample_rate_input / self.hop_length

    @property
    def hop_length(self) -> int:
        """Input samples a token."""
        factors = self.config.compressor_config.downscale_factors
        return self.config.encoder_config.hop_length * math.prod(factors)

    @property
    def output_hop_length(self) -> int:
        """Output samples a token."""
        factors = self.config.decompressor_config.upscale_factors
        return self.config.decoder_config.hop_length * math.prod(factors)

    @property
    def bitrate(self) -> float:
        """Bits a second."""
        return self.token_rate * self.quantizer.dim

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.config.quantizer_config.codebook_size

    @property
    def codebook(self) -> torch.Tensor:
        """All codes [codebook_size, d], in the order of their tokens."""
        return self.quantizer.codebook

    @property
    def causal(self) -> bool:
        """Whether every part can run on a stream."""
        return (
            self.config.encoder_config.causal
            and self.config.compressor_config.causal
            and self.config.decompressor_config.causal
            and self.config.decoder_config.causal
        )

    @property
    def chunk_length(self) -> int | None:
        """Input samples of one chunk of a stream; None when offline."""
        if not self.causal:
            return None
        frames = math.lcm(
            self.config.encoder_config.chunk,
            1 + self.config.decompressor_config.lookahead_size,
            math.prod(self.config.compressor_config.downscale_factors),
        )
        return frames * self.config.encoder_config.hop_length

    @property
    def latency(self) -> float | None:
        """Length of one chunk of a stream (ms); None when offline."""
        if self.chunk_length is None:
            return None
        return 1000 * self.chunk_length / self.sample_rate_input

    def num_tokens(self, num_samples: int) -> int:
        """Tokens that a waveform gives.

        Arguments
        ---------
        num_samples : int
            Samples at the input's rate; at least 1.

        Returns
        -------
        int
            Tokens; at least 1.
        """
        frames = self.encoder.output_lengths(torch.tensor(num_samples))
        return int(self.compressor.output_lengths(frames))

    def output_num_samples(self, num_samples: Any) -> Any:
        """Samples at the output's rate that last as long as the input.

        Arguments
        ---------
        num_samples : int or torch.Tensor
            Samples at the input's rate.

        Returns
        -------
        int or torch.Tensor
            Samples at the output's rate, rounded up.
        """
        return resampled_length(
            num_samples, self.sample_rate_input, self.sample_rate_output
        )

    # Stages

    def sig_to_feats(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Waveform to features.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_input`, within [-1, 1].
        lengths : torch.Tensor, optional
            Samples, int64 [B].
        state : StreamState, optional
            Causal models: what a stream carries between chunks. All chunks
            but the last hold a multiple of `chunk_length` samples.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Features [B, N, C]; with `lengths`, also frames, int64 [B].

        Raises
        ------
        AudioError
            If a sample is NaN or infinite.
        ValueError
            If a shape or type is wrong, or a stream goes on after its last
            chunk.
        """
        _check_floats(sig, "sig", lengths)
        if state is not None and self.chunk_length is not None:
            for _, stream in state.streams():
                if stream.get("ended") is not None:
                    raise ValueError(
                        "the chunk before was no multiple of "
                        f"{self.chunk_length} samples (chunk_length), which "
                        "ends a stream; start a new one with a new StreamState"
                    )
                if sig.shape[1] % self.chunk_length:
                    stream["ended"] = torch.ones(1)
        return self._stage(self.encoder, sig, lengths, state, "encoder")

    def feats_to_lats(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Features to latents on the unit sphere.

        Arguments
        ---------
        feats : torch.Tensor
            Features [B, T, C].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Causal models: what a stream carries between chunks.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Latents [B, N, d]; with `lengths`, also tokens, int64 [B].
        """
        dim = self.config.compressor_config.input_dim
        _check_floats(feats, "feats", lengths, dim)

        def compress(x, lengths, state=None):
            return to_sphere(self.compressor(x, lengths, state))

        compress.output_lengths = self.compressor.output_lengths
        return self._stage(compress, feats, lengths, state, "compressor")

    def lats_to_toks(
        self, lats: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> Staged:
        """Latents to tokens.

        Arguments
        ---------
        lats : torch.Tensor
            Latents [B, N, d].
        lengths : torch.Tensor, optional
            Tokens, int64 [B].

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Tokens, int64 [B, N]; with `lengths`, also the lengths.
        """
        _check_floats(lats, "lats", lengths, self.quantizer.dim)
        return self._pointwise(self.quantizer.lats_to_toks, lats, lengths)

    def lats_to_codes(
        self, lats: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> Staged:
        """Latents to codes.

        Arguments
        ---------
        lats : torch.Tensor
            Latents [B, N, d].
        lengths : torch.Tensor, optional
            Tokens, int64 [B].

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Codes [B, N, d], each +-1/sqrt(d); with `lengths`, also the
            lengths.
        """
        _check_floats(lats, "lats", lengths, self.quantizer.dim)
        return self._pointwise(self.quantizer.lats_to_codes, lats, lengths)

    def toks_to_codes(
        self, toks: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> Staged:
        """Tokens to codes.

        Arguments
        ---------
        toks : torch.Tensor
            Tokens, int64 [B, N].
        lengths : torch.Tensor, optional
            Tokens, int64 [B]; what stands beyond them is not looked at.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Codes [B, N, d]; with `lengths`, also the lengths.

        Raises
        ------
        TokenError
            If a token is no integer in [0, codebook_size).
        """
        toks = self.check_toks(toks, lengths)
        return self._pointwise(self.quantizer.toks_to_codes, toks, lengths)

    def codes_to_toks(
        self, codes: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> Staged:
        """Codes to tokens.

        Arguments
        ---------
        codes : torch.Tensor
            Codes [B, N, d].
        lengths : torch.Tensor, optional
            Tokens, int64 [B].

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Tokens, int64 [B, N]; with `lengths`, also the lengths.
        """
        _check_floats(codes, "codes", lengths, self.quantizer.dim)
        return self.lats_to_toks(codes, lengths)

    def codes_to_qfeats(
        self,
        codes: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Codes to quantized features.

        Arguments
        ---------
        codes : torch.Tensor
            Codes [B, N, d].
        lengths : torch.Tensor, optional
            Tokens, int64 [B].
        state : StreamState, optional
            Causal models: what a stream carries between chunks.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Features [B, T, C]; with `lengths`, also frames, int64 [B].
        """
        _check_floats(codes, "codes", lengths, self.quantizer.dim)
        codes = codes.to(self.decompressor.in_proj.weight.dtype)
        return self._stage(
            self.decompressor, codes, lengths, state, "decompressor"
        )

    def feats_to_sig(
        self,
        feats: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Features to waveform.

        Arguments
        ---------
        feats : torch.Tensor
            Features [B, T, C].
        lengths : torch.Tensor, optional
            Frames, int64 [B].
        state : StreamState, optional
            Causal models: what a stream carries between chunks.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Waveform [B, T * hop] at `sample_rate_output`; with `lengths`,
            also samples, int64 [B].
        """
        dim = self.config.decoder_config.input_dim
        _check_floats(feats, "feats", lengths, dim)
        if lengths is not None:
            lengths = check_lengths(lengths, feats, "lengths")
        sig = self.run_part(self.decoder, feats, lengths, state, "decoder")
        if lengths is None:
            return sig
        lengths = lengths * self.decoder.hop_length
        return zero_beyond(sig, lengths), lengths

    # Stages joined

    def sig_to_toks(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Waveform to tokens, in a single pass.

        Arguments
        ---------
        sig, lengths, state
            See :meth:`sig_to_feats`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Tokens, int64 [B, N]; with `lengths`, the new ones too.
        """
        return _through(
            sig,
            lengths,
            partial(self.sig_to_feats, state=state),
            partial(self.feats_to_lats, state=state),
            self.lats_to_toks,
        )

    def sig_to_codes(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Waveform to codes, in a single pass.

        Arguments
        ---------
        sig, lengths, state
            See :meth:`sig_to_feats`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Codes [B, N, d]; with `lengths`, the new ones too.
        """
        return _through(
            sig,
            lengths,
            partial(self.sig_to_feats, state=state),
            partial(self.feats_to_lats, state=state),
            self.lats_to_codes,
        )

    def sig_to_qfeats(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Waveform to quantized features, in a single pass.

        Arguments
        ---------
        sig, lengths, state
            See :meth:`sig_to_feats`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Features [B, T, C]; with `lengths`, the new ones too.
        """
        return _through(
            sig,
            lengths,
            partial(self.sig_to_codes, state=state),
            partial(self.codes_to_qfeats, state=state),
        )

    def toks_to_qfeats(
        self,
        toks: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Tokens to quantized features, in a single pass.

        Arguments
        ---------
        toks, lengths, state
            See :meth:`codes_to_qfeats`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Features [B, T, C]; with `lengths`, the new ones too.
        """
        return _through(
            toks,
            lengths,
            self.toks_to_codes,
            partial(self.codes_to_qfeats, state=state),
        )

    def toks_to_sig(
        self,
        toks: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Tokens to waveform, in a single pass.

        Arguments
        ---------
        toks, lengths, state
            See :meth:`codes_to_qfeats`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Waveform [B, T]; with `lengths`, the new ones too.
        """
        return _through(
            toks,
            lengths,
            self.toks_to_codes,
            partial(self.codes_to_sig, state=state),
        )

    def codes_to_sig(
        self,
        codes: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> Staged:
        """Codes to waveform, in a single pass.

        Arguments
        ---------
        codes, lengths, state
            See :meth:`codes_to_qfeats`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Waveform [B, T]; with `lengths`, the new ones too.
        """
        return _through(
            codes,
            lengths,
            partial(self.codes_to_qfeats, state=state),
            partial(self.feats_to_sig, state=state),
        )

    # The whole way, of any length

    def encode(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        *,
        window: float | None = WINDOW,
        context: float = CONTEXT,
        batch_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveform to tokens, of any length in bounded memory.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_input`.
        lengths : torch.Tensor, optional
            Samples, int64 [B].
        window : float, optional
            Utterances longer than this (seconds) are encoded window by
            window, with the tokens of a single pass but for rounding; WavLM's
            attention in an offline model sees its window only, which changes
            some tokens. None: a single pass.
        context : float
            Offline models: what a window of the encoder sees on each side of
            the frames that are kept (seconds), rounded up to whole frames.
        batch_size : int, optional
            Windows at once; the batch's own size by default.

        Returns
        -------
        toks : torch.Tensor
            Tokens, int64 [B, N], 0 beyond each length.
        tok_lengths : torch.Tensor
            Tokens, int64 [B].

        Raises
        ------
        AudioError
            If a sample is NaN or infinite.
        FocalCodecError
            If the folder for temporary files cannot hold the features.
        ValueError
            If a shape or an argument is wrong.

        Notes
        -----
        Offline models keep the features of utterances longer than a window
        for the compressor, layer by layer: up to 64 MB in memory, more in the
        folder that TMPDIR names. An hour at 50 Hz and 1024 channels is
        0.74 GB, and for a moment there are two of these.

        Example
        -------
        >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
        >>> toks, _ = codec.encode(torch.randn(1, 160000), window=4, context=1)
        >>> toks.shape
        torch.Size([1, 500])
        """
        _check_floats(sig, "sig", lengths)
        if lengths is not None:
            lengths = check_lengths(lengths, sig, "lengths")
        return windowed.encode(self, sig, lengths, window, context, batch_size)

    def encode_stream(
        self,
        read: Callable[[int, int], torch.Tensor],
        num_samples: int,
        *,
        window: float | None = WINDOW,
        context: float = CONTEXT,
        batch_size: int = 1,
    ) -> torch.Tensor:
        """Waveform to tokens, read part by part: hours from disk.

        Arguments
        ---------
        read : callable
            ``read(start, stop)`` gives samples [stop - start] at
            `sample_rate_input`. Starts never decrease; parts may overlap.
        num_samples : int
            Length of the waveform.
        window, context
            See :meth:`encode`.
        batch_size : int
            Windows at once.

        Returns
        -------
        torch.Tensor
            Tokens, int64 [N], on the CPU: those of :meth:`encode`, which
            also tells of the room that an offline model takes on disk.

        Raises
        ------
        AudioError
            If a sample is NaN or infinite.
        FocalCodecError
            If the folder for temporary files cannot hold the features.
        ValueError
            If an argument is wrong, or `read` gives another shape.

        Example
        -------
        >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
        >>> codec.encode_stream(lambda i, j: torch.zeros(j - i), 160000).shape
        torch.Size([500])
        """
        return windowed.encode_stream(
            self, read, num_samples, window, context, batch_size
        )

    def decode(
        self,
        toks: torch.Tensor,
        tok_lengths: torch.Tensor | None = None,
        *,
        window: float | None = WINDOW,
        batch_size: int | None = None,
        convert: Convert | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens to waveform, of any length in bounded memory.

        Arguments
        ---------
        toks : torch.Tensor
            Tokens, int64 [B, N].
        tok_lengths : torch.Tensor, optional
            Tokens, int64 [B].
        window : float, optional
            Utterances longer than this (seconds) are decoded by windows, with
            the result of a single pass: what a window needs around it is
            known, and a shorter window is made twice that long. Gradients are
            kept in a single pass only. None: a single pass.
        batch_size : int, optional
            Windows at once; the batch's own size by default.
        convert : callable, optional
            What the quantized features go through before the decoder, frame
            by frame: (features [B, T, C], frames int64 [B] or None) ->
            features. Such as :meth:`VoiceReference.converter`.

        Returns
        -------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_output`, 0 beyond each length.
        sig_lengths : torch.Tensor
            Samples, int64 [B].

        Raises
        ------
        FocalCodecError
            If the folder for temporary files (TMPDIR) cannot hold the
            features between an offline model's layers: see :meth:`encode`.
        TokenError
            If a token is no integer in [0, codebook_size).
        ValueError
            If a shape or an argument is wrong.
        """
        toks = self.check_toks(toks, tok_lengths, "tok_lengths")
        return windowed.decode(
            self, toks, tok_lengths, window, batch_size, convert
        )

    def decode_stream(
        self,
        toks: torch.Tensor,
        *,
        window: float | None = WINDOW,
        batch_size: int = 1,
        convert: Convert | None = None,
    ) -> Iterator[torch.Tensor]:
        """Tokens to waveform, piece by piece: hours to disk.

        Arguments
        ---------
        toks : torch.Tensor
            Tokens, int64 [N].
        window, convert
            See :meth:`decode`.
        batch_size : int
            Windows at once.

        Returns
        -------
        iterator of torch.Tensor
            Consecutive pieces [T] of the waveform of :meth:`decode`, on the
            CPU.

        Raises
        ------
        FocalCodecError
            See :meth:`decode`.
        TokenError
            If a token is no integer in [0, codebook_size).
        ValueError
            If a shape or an argument is wrong.

        Example
        -------
        >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
        >>> toks = torch.zeros(1000, dtype=torch.int64)
        >>> sum(len(sig) for sig in codec.decode_stream(toks, window=10))
        320000
        """
        _check_rank(toks, 1, "toks", "[N]")
        toks = self.check_toks(toks[None])[0]
        return windowed.decode_stream(self, toks, window, batch_size, convert)

    def resynthesize(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        *,
        window: float | None = WINDOW,
        context: float = CONTEXT,
        batch_size: int | None = None,
    ) -> Staged:
        """Waveform to tokens and back, as long as it was.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_input`.
        lengths : torch.Tensor, optional
            Samples, int64 [B].
        window, context, batch_size
            See :meth:`encode` and :meth:`decode`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Waveform at `sample_rate_output` that lasts as long as `sig`
            (samples rounded up); with `lengths`, also samples, int64 [B].
        """
        return self._round_trip(sig, lengths, window, context, batch_size)

    def convert_voice(
        self,
        sig: torch.Tensor,
        reference: "VoiceReference",
        lengths: torch.Tensor | None = None,
        *,
        k: int = 4,
        window: float | None = WINDOW,
        context: float = CONTEXT,
        batch_size: int | None = None,
    ) -> Staged:
        """The same words in another speaker's voice, as long as they were.

        Each quantized feature frame gives way to the mean of the `k` nearest
        frames of the reference (by cosine), which are then decoded.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_input`.
        reference : VoiceReference
            Speech of the target speaker, see
            :mod:`speechbrain_focalcodec.voice.reference`.
        lengths : torch.Tensor, optional
            Samples, int64 [B].
        k : int
            Number of frames to average.
        window, context, batch_size
            See :meth:`encode` and :meth:`decode`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            See :meth:`resynthesize`.

        Raises
        ------
        VoiceError
            If another model made the reference, or it has fewer than `k`
            frames.
        ValueError
            If a shape or an argument is wrong.

        Example
        -------
        >>> from speechbrain_focalcodec.voice.reference import VoiceReference
        >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
        >>> reference = VoiceReference.from_sigs(codec, [torch.randn(16000)])
        >>> codec.convert_voice(torch.randn(1, 12345), reference).shape
        torch.Size([1, 12345])
        """
        convert = reference.converter(self, k)
        return self._round_trip(
            sig, lengths, window, context, batch_size, convert
        )

    def _round_trip(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None,
        window: float | None,
        context: float,
        batch_size: int | None,
        convert: Convert | None = None,
    ) -> Staged:
        """Waveform to tokens and back, as long as it was."""
        toks, tok_lengths = self.encode(
            sig, lengths, window=window, context=context, batch_size=batch_size
        )
        num_samples = self.output_num_samples(sig.shape[-1])
        rec, _ = self.decode(
            toks,
            None if lengths is None else tok_lengths,
            window=window,
            batch_size=batch_size,
            convert=convert,
        )
        rec = fit_length(rec, num_samples)
        if lengths is None:
            return rec
        lengths = self.output_num_samples(lengths.to(rec.device))
        return zero_beyond(rec, lengths), lengths

    def forward(
        self, sig: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> Staged:
        """The same as :meth:`resynthesize`.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_input`.
        lengths : torch.Tensor, optional
            Samples, int64 [B].

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            See :meth:`resynthesize`.
        """
        return self.resynthesize(sig, lengths)

    def check_toks(
        self,
        toks: torch.Tensor,
        lengths: torch.Tensor | None = None,
        name: str = "lengths",
    ) -> torch.Tensor:
        """Refuse tokens that this model does not have.

        Arguments
        ---------
        toks : torch.Tensor
            Integers [B, N].
        lengths : torch.Tensor, optional
            Tokens, int64 [B]; what stands beyond them is not looked at.
        name : str
            What to call the lengths in a message.

        Returns
        -------
        torch.Tensor
            The tokens, int64 [B, N], 0 beyond the lengths.

        Raises
        ------
        TokenError
            If a token is no integer in [0, codebook_size).
        ValueError
            If a shape is wrong.
        """
        _check_rank(toks, 2, "toks", "[B, N]")
        if toks.is_floating_point() or toks.is_complex():
            raise TokenError(f"toks must be integers, got {toks.dtype}")
        if lengths is not None:
            lengths = check_lengths(lengths, toks, name)
        toks = zero_beyond(toks.long(), lengths)
        low, high = int(toks.min()), int(toks.max())
        if low < 0 or high >= self.codebook_size:
            raise TokenError(
                f"toks must lie in 0..{self.codebook_size - 1} for "
                f"{self.name}, got {low}..{high}; were they made by another "
                "model?"
            )
        return toks

    def _stage(
        self,
        module: Any,
        x: torch.Tensor,
        lengths: torch.Tensor | None,
        state: StreamState | None,
        role: str,
    ) -> Staged:
        """Run one part; with lengths, zero its padding and count anew."""
        if lengths is None:
            return self.run_part(module, x, None, state, role)
        lengths = check_lengths(lengths, x, "lengths")
        y = self.run_part(module, x, lengths, state, role)
        lengths = module.output_lengths(lengths)
        return zero_beyond(y, lengths, own=True), lengths

    def run_part(
        self,
        module: Any,
        x: torch.Tensor,
        lengths: torch.Tensor | None,
        state: StreamState | None,
        role: str,
    ) -> torch.Tensor:
        """Run a part, or a layer of one, as this codec runs them.

        Arguments
        ---------
        module : callable
            What to run: (x, lengths) or (x, lengths, state).
        x : torch.Tensor
            Its input [B, T, ...].
        lengths : torch.Tensor, optional
            Steps, int64 [B].
        state : StreamState, optional
            Carried by a causal model; or the means of whole utterances.
        role : str
            The part's name in `state`.

        Returns
        -------
        torch.Tensor
            What it gives, whatever that is beyond the lengths.

        Raises
        ------
        StreamError
            If an offline model is to carry state.
        """
        if (
            state is not None
            and not self.causal
            and not isinstance(state, TimeMeans)
        ):
            raise StreamError(checkpoint.offline_message(self.name))
        options = () if state is None else (scope(state, role),)
        if self.autocast_dtype is None:
            return module(x, lengths, *options)
        with torch.autocast(x.device.type, self.autocast_dtype):
            return module(x, lengths, *options)

    @staticmethod
    def _pointwise(
        function: Any, x: torch.Tensor, lengths: torch.Tensor | None
    ) -> Staged:
        """Apply what keeps the time axis and mixes nothing along it."""
        if lengths is None:
            return function(x)
        lengths = check_lengths(lengths, x, "lengths")
        return zero_beyond(function(x), lengths, own=True), lengths


def _hash(codec: FocalCodec) -> str:
    """SHA-256 (hex) over configuration and weights."""
    weights = codec.state_dict()
    if len(codec.parts) < len(PART_CONFIGS):
        weights |= checkpoint.absent_weights(codec)
    return checkpoint.fingerprint_of(codec.config.identity(), weights)


def fit_length(sig: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Cut a waveform, or fill it with zeros, to a number of samples.

    Arguments
    ---------
    sig : torch.Tensor
        Waveform [..., T].
    num_samples : int
        Samples wanted.

    Returns
    -------
    torch.Tensor
        Waveform [..., num_samples].

    Example
    -------
    >>> fit_length(torch.ones(1, 3), 5)
    tensor([[1., 1., 1., 0., 0.]])
    """
    missing = num_samples - sig.shape[-1]
    return nn.functional.pad(sig, (0, missing))


def _through(
    x: torch.Tensor, lengths: torch.Tensor | None, *stages: Callable[..., Any]
) -> Staged:
    """Stages one after the other."""
    if lengths is None:
        for stage in stages:
            x = stage(x)
        return x
    for stage in stages:
        x, lengths = stage(x, lengths)
    return x, lengths


def _check_rank(x: torch.Tensor, rank: int, name: str, shape: str) -> None:
    if not isinstance(x, torch.Tensor) or x.ndim != rank or 0 in x.shape:
        got = list(x.shape) if isinstance(x, torch.Tensor) else type(x)
        raise ValueError(
            f"{name} must be a tensor {shape} that is not empty, got {got}"
        )


def _check_floats(
    x: torch.Tensor,
    name: str,
    lengths: torch.Tensor | None,
    dim: int | None = None,
) -> None:
    """Refuse all but a batch of waveforms, or of frames of `dim` channels."""
    if dim is None:
        _check_rank(x, 2, name, "[B, T]")
    else:
        shape = "[B, T, C]" if name == "feats" else "[B, N, d]"
        _check_rank(x, 3, name, shape)
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
    # A training counts its losses that are not finite.
    is_trained = x.requires_grad and torch.is_grad_enabled()
    if is_trained or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    # NaN and infinity spread to a sum, which is faster to look at.
    if math.isfinite(x.detach().sum()):
        return
    if lengths is not None:
        # What stands beyond the lengths does not matter.
        x = zero_beyond(x, check_lengths(lengths, x, "lengths"))
    if not bool(x.isfinite().all()):
        error = AudioError if dim is None else ValueError
        raise error(f"{name} has NaN or infinite values; find what made them")
