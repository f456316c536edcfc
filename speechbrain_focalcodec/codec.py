"""FocalCodec: speech to tokens and back, of any length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechbrain_focalcodec import checkpoint, model_files
from speechbrain_focalcodec.config import CodecConfig
from speechbrain_focalcodec.hub import HubOptions
from speechbrain_focalcodec.long_audio import engine
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW
from speechbrain_focalcodec.modules.masking import check_lengths, zero_beyond
from speechbrain_focalcodec.modules.part import Part
from speechbrain_focalcodec.modules.part_configs import PartConfig
from speechbrain_focalcodec.parts import ROLES, build_part
from speechbrain_focalcodec.stages import (
    Convert,
    Staged,
    Stages,
    check_floats,
    check_rank,
)
from speechbrain_focalcodec.voice.reference import VoiceReference

__all__ = ["FocalCodec", "fit_length"]


class FocalCodec(Stages):
    """Speech to tokens and back.

    Use it under :class:`torch.no_grad` or inference mode for speed: some fast
    layouts on the CPU have no gradient. `half`, `bfloat16` and `double` convert
    all weights; :func:`acceleration.accelerate` keeps more of the tokens in
    bfloat16.

    Arguments
    ---------
    encoder, compressor, quantizer, decompressor, decoder : Part
        Waveform to features, features to latents, latents to codes and
        tokens, codes to features, features to waveform; see
        :mod:`speechbrain_focalcodec.modules.part`.
    name : str
        Name of the model in messages and token files.
    config : dict, optional
        A configuration in place of the parts, as in `hyperparams.yaml` of
        version 0.1.0; see :meth:`from_config`.

    Raises
    ------
    ValueError
        If the parts do not fit each other.

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

    def __init__(
        self,
        encoder: Part | PartConfig | None = None,
        compressor: Part | PartConfig | None = None,
        quantizer: Part | PartConfig | None = None,
        decompressor: Part | PartConfig | None = None,
        decoder: Part | PartConfig | None = None,
        name: str = "unnamed",
        *,
        config: Mapping[str, Any] | None = None,
    ):
        modules = (encoder, compressor, quantizer, decompressor, decoder)
        parts: dict[str, Any] = dict(zip(ROLES, modules, strict=True))
        if config is not None:
            parts = _build_parts(CodecConfig.parse(config), ROLES)
        super().__init__(**parts, name=name)

    # Loading and saving

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any] | CodecConfig,
        name: str = "unnamed",
        parts: Sequence[str] | None = None,
    ) -> "FocalCodec":
        """Build a codec with random weights, in training mode.

        Arguments
        ---------
        config : dict or CodecConfig
            In the layout of `config.json`; missing options get the defaults of
            :func:`speechbrain_focalcodec.config.fill_defaults`.
        name : str
            Name of the model in messages and token files.
        parts : sequence of str, optional
            Roles of the parts to build, such as ``("decompressor",
            "decoder")``; all by default. The quantizer, which has no
            weights, is always built.

        Returns
        -------
        FocalCodec
            The codec.

        Raises
        ------
        ConfigError
            If `config` does not fit the schema.
        ValueError
            If `parts` is empty or names no part.
        """
        wanted = tuple(ROLES if parts is None else parts)
        if not wanted or not set(wanted) <= set(ROLES):
            raise ValueError(
                f"parts must be some of {', '.join(ROLES)}, got {wanted}"
            )
        wanted = (*wanted, "quantizer")
        built = _build_parts(CodecConfig.parse(config), wanted)
        return cls(**built, name=name)

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
        """Load a model in eval mode. Nothing that was downloaded is executed.

        Arguments
        ---------
        source : str or Path
            Name of a bundled model; a local folder or a repository on the
            Hugging Face hub with `config.json` and `model.safetensors`
            (either published format); or a configuration in one of these,
            such as ``folder/config_x.json`` or ``owner/name/config_x.json``,
            beside weights of the same name (config_x.safetensors).
        revision : str, optional
            Hub only: commit, tag or branch. The releases are pinned by default.
        device : str or torch.device, optional
            Device of the model; the CPU by default.
        parts : sequence of str, optional
            Roles of the parts to load, such as ``("decompressor", "decoder")``;
            weights of other parts are not read. All by default.
        cache_dir : str or Path, optional
            Hub only: folder of the local cache.
        local_files_only : bool
            Hub only: whether to use only the local cache.
        token : str or bool, optional
            Hub only: access token of a private repository.

        Returns
        -------
        FocalCodec
            The codec.

        Raises
        ------
        ConfigError
            If the configuration is missing or does not fit the schema, or
            leaves out options and no published default fits the weights.
        CheckpointError
            If the source cannot be found or fetched, a weight is missing,
            unexpected or of another shape, the weights are pickled, or a
            revision is given for a source that is not on the hub.
        ValueError
            If `parts` is empty or names no part.
        """
        options: HubOptions = {
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
        }
        files = model_files.find_model(source, revision, options)
        config = checkpoint.match_config(files)
        codec = cls.from_config(config, files.name, parts)
        checkpoint.load_weights(codec, files.weights)
        codec.weights_file = files.weights
        return codec.to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the v0.0.2 format.

        Arguments
        ---------
        folder : str or Path
            Created if missing.

        Raises
        ------
        PartError
            If the model was loaded without some of its parts.
        ValueError
            If the model was accelerated: its weights are no longer exact.
        """
        if self.accelerated:
            raise ValueError(
                f"{self.name} was accelerated ({self.accelerated}), which "
                "rounds its weights; save the model before that"
            )
        for role in ROLES:
            getattr(self, role)  # an error if it is absent
        config = self.config.to_dict()
        with checkpoint.writing_model(Path(folder), config, self.state_dict()):
            pass

    # Encoding and decoding of any length

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
            Number of samples, int64 [B].
        window : float, optional
            Utterances longer than this (seconds) are encoded in windows. The
            tokens are those of a single pass up to rounding, but WavLM's
            attention in an offline model sees only its window, which changes
            some tokens. None: always a single pass.
        context : float
            Offline models: seconds that a window of the encoder sees on each
            side of the frames that it keeps, rounded up to whole frames.
        batch_size : int, optional
            Number of windows in a batch; by default that of `sig`.

        Returns
        -------
        toks : torch.Tensor
            Tokens, int64 [B, N], 0 beyond each length.
        tok_lengths : torch.Tensor
            Number of tokens, int64 [B].

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
        Offline models store the features of utterances longer than a window
        between the compressor's layers: up to 64 MB in memory, more in the
        folder that TMPDIR names. An hour at 50 Hz and 1024 channels is
        0.74 GB, and two layers' features exist at a time.
        """
        check_floats(sig, "sig", lengths)
        if lengths is not None:
            lengths = check_lengths(lengths, sig, "lengths")
        return engine.encode(self, sig, lengths, window, context, batch_size)

    def encode_stream(
        self,
        read: Callable[[int, int], torch.Tensor],
        num_samples: int,
        *,
        window: float | None = WINDOW,
        context: float = CONTEXT,
        batch_size: int = 1,
    ) -> torch.Tensor:
        """Waveform to tokens, read piece by piece: hours from disk.

        Arguments
        ---------
        read : callable
            ``read(start, stop)`` returns samples [stop - start] at
            `sample_rate_input`. Starts never decrease; pieces may overlap.
        num_samples : int
            Length of the waveform.
        window, context
            See :meth:`encode`.
        batch_size : int
            Number of windows in a batch.

        Returns
        -------
        torch.Tensor
            Tokens of :meth:`encode`, int64 [N], on the CPU.

        Raises
        ------
        AudioError
            If a sample is NaN or infinite.
        FocalCodecError
            If the folder for temporary files cannot hold the features.
        ValueError
            If an argument is wrong, or `read` returns another shape.

        Example
        -------
        >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
        >>> codec.encode_stream(lambda i, j: torch.zeros(j - i), 160000).shape
        torch.Size([500])
        """
        return engine.encode_stream(
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
            Number of tokens, int64 [B].
        window : float, optional
            Utterances longer than this (seconds) are decoded in windows, with
            the result of a single pass. Windows shorter than twice their
            context are lengthened. Only a single pass has gradients. None:
            always a single pass.
        batch_size : int, optional
            Number of windows in a batch; by default that of `toks`.
        convert : callable, optional
            Applied to quantized features before they are decoded, frame by
            frame: (features [B, T, C], lengths int64 [B] or None) ->
            features. Such as :meth:`VoiceReference.converter`.

        Returns
        -------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_output`, 0 beyond each length.
        sig_lengths : torch.Tensor
            Number of samples, int64 [B].

        Raises
        ------
        FocalCodecError
            If the folder for temporary files cannot hold the features, see
            :meth:`encode`.
        TokenError
            If a token is no integer in [0, codebook_size).
        ValueError
            If a shape or an argument is wrong.
        """
        toks = self.check_toks(toks, tok_lengths, "tok_lengths")
        return engine.decode(
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
            Number of windows in a batch.

        Returns
        -------
        iterator of torch.Tensor
            Consecutive pieces [T] of the waveform of :meth:`decode`, on the
            CPU.

        Raises
        ------
        FocalCodecError, TokenError, ValueError
            See :meth:`decode`.

        Example
        -------
        >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
        >>> toks = torch.zeros(1000, dtype=torch.int64)
        >>> sum(len(sig) for sig in codec.decode_stream(toks, window=10))
        320000
        """
        check_rank(toks, 1, "toks", "[N]")
        toks = self.check_toks(toks[None])[0]
        return engine.decode_stream(self, toks, window, batch_size, convert)

    def resynthesize(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        *,
        window: float | None = WINDOW,
        context: float = CONTEXT,
        batch_size: int | None = None,
    ) -> Staged:
        """Encode and decode a waveform, keeping its duration.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_input`.
        lengths : torch.Tensor, optional
            Number of samples, int64 [B].
        window, context, batch_size
            See :meth:`encode` and :meth:`decode`.

        Returns
        -------
        torch.Tensor or (torch.Tensor, torch.Tensor)
            Waveform at `sample_rate_output` with the duration of `sig`
            (samples rounded up); with `lengths`, also the number of samples,
            int64 [B].
        """
        return self._round_trip(sig, lengths, window, context, batch_size)

    def convert_voice(
        self,
        sig: torch.Tensor,
        reference: VoiceReference,
        lengths: torch.Tensor | None = None,
        *,
        k: int = 4,
        window: float | None = WINDOW,
        context: float = CONTEXT,
        batch_size: int | None = None,
    ) -> Staged:
        """Convert speech to the voice of another speaker, keeping its duration.

        Each quantized feature frame is replaced by the mean of the `k` nearest
        frames (by cosine) of the reference.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at `sample_rate_input`.
        reference : VoiceReference
            Speech of the target speaker, see
            :mod:`speechbrain_focalcodec.voice.reference`.
        lengths : torch.Tensor, optional
            Number of samples, int64 [B].
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
            If the reference belongs to another model or has fewer than `k`
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
        """Encode, convert and decode; crop to the duration of `sig`."""
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
        """The same as :meth:`resynthesize`."""
        return self.resynthesize(sig, lengths)


def _build_parts(config: CodecConfig, wanted: Sequence[str]) -> dict[str, Any]:
    """Parts of the wanted roles, configurations of the others."""
    return {
        role: build_part(role, config.name(role), config.part(role))
        if role in wanted
        else config.part(role)
        for role in ROLES
    }


def fit_length(sig: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Crop or zero-pad a waveform [..., T] to [..., num_samples]."""
    missing = num_samples - sig.shape[-1]
    return nn.functional.pad(sig, (0, missing))
