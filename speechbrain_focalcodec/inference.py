"""SpeechBrain's interface to a pretrained codec."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import FetchConfig, FetchSource
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.acceleration import Precision, accelerate
from speechbrain_focalcodec.audio.files import find_audio_files
from speechbrain_focalcodec.audio.gate import check_sig
from speechbrain_focalcodec.audio.resampling import resample, resampled_length
from speechbrain_focalcodec.audio.stream import AudioReader, AudioWriter
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import AudioError, TokenError, VoiceError
from speechbrain_focalcodec.hyperparams import own_savedir
from speechbrain_focalcodec.long_audio import engine
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW
from speechbrain_focalcodec.stages import Convert
from speechbrain_focalcodec.tokens.content import TokenFile
from speechbrain_focalcodec.utils.lengths import absolute_lengths
from speechbrain_focalcodec.voice.reference import VoiceReference

__all__ = ["PretrainedFocalCodec"]


class PretrainedFocalCodec(Pretrained):
    """A trained FocalCodec, ready to use.

    Load it with :meth:`from_pretrained`, which executes no code of the model,
    or with SpeechBrain's ``from_hparams(source, savedir=...)``. The latter
    executes the code that the folder's ``hyperparams.yaml`` names: use it only
    for folders that you trust, and give each model its own savedir.

    Lengths are SpeechBrain's: relative to the longest item, float [B] in (0,
    1]. Audio may have any length, in bounded memory; files are read, resampled
    and written in pieces.

    Attributes
    ----------
    window, context : float
        Windows over longer audio (s): see :meth:`FocalCodec.encode`.
    batch_size : int
        Windows of one file in a batch: more than 1 is faster on a GPU.
    channel : int, optional
        The channel of files to read, from 0; the mean of all by default.
    strict : bool
        Whether to raise an error in place of a warning: channels that
        cancel, samples far outside [-1, 1], near silence.

    Arguments
    ---------
    modules : dict
        The codec, under the key ``codec``.
    hparams : dict, optional
        Hyperparameters from ``from_hparams``.
    run_opts : dict, optional
        SpeechBrain's run options, such as ``{"device": "cuda"}``.
    freeze_params : bool
        Whether to freeze the weights and set evaluation mode.

    Example
    -------
    >>> model = PretrainedFocalCodec.from_pretrained(
    ...     "tests/parity/offline_50hz"
    ... )
    >>> tokens, token_lens = model.encode_batch(torch.randn(2, 16000))
    >>> wavs, wav_lens = model.decode_batch(tokens, token_lens)
    >>> file = model.tokenize_file("speechbrain_focalcodec/assets/demo.flac")
    >>> file.num_samples_at(16000)
    96320
    """

    MODULES_NEEDED = ["codec"]

    window: float | None = WINDOW
    context: float = CONTEXT
    batch_size: int = 1
    channel: int | None = None
    strict: bool = False

    def __init__(
        self,
        modules: dict[str, torch.nn.Module],
        hparams: dict | None = None,
        run_opts: dict | None = None,
        freeze_params: bool = True,
    ) -> None:
        for name in self.MODULES_NEEDED:
            if name not in modules:
                raise ValueError(f"modules: has no {name!r}; add it")
        hparams = dict(hparams or {})
        # load_audio then returns the input of encode_batch.
        hparams.setdefault(
            "audio_normalizer",
            AudioNormalizer(sample_rate=modules["codec"].sample_rate_input),
        )
        super().__init__(modules, hparams, run_opts, freeze_params)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        run_opts: dict | None = None,
        *,
        precision: Precision | None = None,
        compile: bool = False,
        parts: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> "PretrainedFocalCodec":
        """Load a model from JSON and safetensors; no code is executed.

        Arguments
        ---------
        source : str or Path
            A bundled model's name, a local folder, a hub repository or a
            configuration in one: see :meth:`FocalCodec.from_pretrained`.
        revision : str, optional
            Revision on the hub.
        run_opts : dict, optional
            SpeechBrain's run options, such as ``{"device": "cuda"}``.
        precision : str, optional
            ``bf16`` or ``int8``: faster and nearly exact, see
            :func:`~speechbrain_focalcodec.acceleration.accelerate`.
        compile : bool
            Whether to use torch.compile.
        parts, cache_dir, local_files_only, token
            See :meth:`FocalCodec.from_pretrained`.

        Returns
        -------
        PretrainedFocalCodec
            The model, on the device of `run_opts` (a GPU if there is one).

        Raises
        ------
        ConfigError
            If its configuration is damaged or unknown.
        CheckpointError
            If its weights are missing, damaged or do not fit.
        """
        codec = FocalCodec.from_pretrained(
            source,
            revision=revision,
            parts=parts,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        model = cls(modules={"codec": codec}, run_opts=run_opts)
        accelerate(model.codec, precision, compile)
        return model

    @classmethod
    def from_hparams(
        cls,
        source: str | Path | FetchSource,
        hparams_file: str = "hyperparams.yaml",
        **kwargs: Any,
    ) -> "PretrainedFocalCodec":
        """Load a model with SpeechBrain; executes the code that its YAML names.

        Arguments
        ---------
        source : str or Path or FetchSource
            A trusted folder of ``focalcodec export``, or a hub repository.
        hparams_file : str
            Name of the hyperparameters file.
        **kwargs : dict
            As for SpeechBrain's ``from_hparams``, such as ``savedir``.

        Returns
        -------
        PretrainedFocalCodec
            The model.

        Raises
        ------
        CheckpointError
            If its weights do not fit, or `savedir` holds another model.
        """
        savedir = kwargs.get("savedir")
        config = kwargs.get("fetch_config", FetchConfig())
        with own_savedir(source, hparams_file, savedir, config):
            return super().from_hparams(source, hparams_file, **kwargs)

    @property
    def codec(self) -> FocalCodec:
        """The codec, with absolute lengths and its stages."""
        return self.mods.codec

    @property
    def fingerprint(self) -> str:
        """The codec's fingerprint."""
        return self.codec.fingerprint

    def encode_batch(
        self,
        wavs: torch.Tensor,
        wav_lens: torch.Tensor | None = None,
        sample_rate: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch of waveforms to tokens.

        Arguments
        ---------
        wavs : torch.Tensor
            One-channel waveforms, float [B, T].
        wav_lens : torch.Tensor, optional
            Relative lengths, float [B].
        sample_rate : int, optional
            Their sample rate (Hz); the codec's input rate by default.

        Returns
        -------
        tokens : torch.Tensor
            int64 [B, N].
        token_lens : torch.Tensor
            Relative lengths, float [B].

        Raises
        ------
        AudioError
            If the batch is empty or not finite.
        ValueError
            If a shape, type or relative length is wrong.
        """
        check_sig(wavs, name="wavs")
        wavs = wavs.to(self.device, torch.float32)
        lengths = absolute_lengths("wav_lens", wav_lens, wavs)
        to_rate = self.codec.sample_rate_input
        if sample_rate not in (None, to_rate):
            # One by one: padding must not leak into the last samples, nor
            # affect the transform of an awkward ratio.
            wavs = pad_sequence(
                [
                    resample(wav[:length], sample_rate, to_rate)
                    for wav, length in zip(wavs, lengths, strict=True)
                ],
                batch_first=True,
            )
            lengths = resampled_length(lengths, sample_rate, to_rate)
        with torch.no_grad(), self.inference_ctx:
            toks, tok_lengths = self.codec.encode(
                wavs, lengths, window=self.window, context=self.context
            )
        return toks, tok_lengths / toks.shape[1]

    def decode_batch(
        self, tokens: torch.Tensor, token_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode a batch of tokens to waveforms.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 [B, N].
        token_lens : torch.Tensor, optional
            Relative lengths, float [B].

        Returns
        -------
        wavs : torch.Tensor
            float32 [B, T] at the codec's output sample rate.
        wav_lens : torch.Tensor
            Relative lengths, float [B].

        Raises
        ------
        TokenError
            If the batch is empty or a token is out of range.
        ValueError
            If a shape, type or relative length is wrong.
        """
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ValueError(
                "tokens: must be int64 [B, N], but is "
                f"{tokens.dtype} {list(tokens.shape)}"
            )
        if tokens.numel() == 0:
            raise TokenError("tokens: is empty; give at least one token")
        tokens = tokens.to(self.device)
        lengths = absolute_lengths("token_lens", token_lens, tokens)
        with torch.no_grad(), self.inference_ctx:
            sig, sig_lengths = self.codec.decode(
                tokens, lengths, window=self.window
            )
        return sig.float(), sig_lengths / sig.shape[1]

    # SpeechBrain's convention for audio tokenizers, as of its WavTokenizer

    def encode(
        self, inputs: torch.Tensor, length: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch of waveforms to tokens and their embeddings.

        Arguments
        ---------
        inputs : torch.Tensor
            Waveforms at the codec's input rate, float [B, T] or [B, 1, T].
        length : torch.Tensor, optional
            Relative lengths, float [B].

        Returns
        -------
        tokens : torch.Tensor
            int64 [B, 1, N], with one codebook.
        embeddings : torch.Tensor
            Their codes [B, N, d], 0 beyond each length.

        Raises
        ------
        AudioError, ValueError
            See :meth:`encode_batch`.
        """
        if inputs.ndim == 3 and inputs.shape[1] == 1:
            inputs = inputs[:, 0]
        check_sig(inputs, name="inputs")
        lengths = absolute_lengths("length", length, inputs)
        tokens, token_lens = self.encode_batch(
            inputs, lengths / inputs.shape[1]
        )
        codes, _ = self.codec.toks_to_codes(
            tokens, absolute_lengths("length", token_lens, tokens)
        )
        return tokens[:, None], codes

    def decode(
        self, tokens: torch.Tensor, length: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Decode a batch of tokens to waveforms.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 [B, 1, N] or [B, N].
        length : torch.Tensor, optional
            Relative lengths, float [B].

        Returns
        -------
        torch.Tensor
            float32 [B, T] at the codec's output sample rate.

        Raises
        ------
        TokenError, ValueError
            See :meth:`decode_batch`.
        """
        if tokens.ndim == 3 and tokens.shape[1] == 1:
            tokens = tokens[:, 0]
        return self.decode_batch(tokens, length)[0]

    def get_pretrained_embeddings(
        self, vocab_size: int | None = None, num_codebooks: int | None = None
    ) -> torch.Tensor:
        """Codes of all tokens, to initialise an embedding.

        Arguments
        ---------
        vocab_size, num_codebooks : int, optional
            Expected size of the codebook, and 1.

        Returns
        -------
        torch.Tensor
            Codes [codebook_size, d].

        Raises
        ------
        ValueError
            If the model has another number of tokens or codebooks.
        """
        size = self.codec.codebook_size
        for name, got, has in (
            ("vocab_size", vocab_size, size),
            ("num_codebooks", num_codebooks, 1),
        ):
            if got not in (None, has):
                raise ValueError(f"{name}: the model has {has}, not {got}")
        return self.codec.codebook

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Resynthesise a batch: encode and decode it.

        Arguments
        ---------
        wavs : torch.Tensor
            One-channel waveforms at the codec's input rate, float [B, T].
        wav_lens : torch.Tensor, optional
            Relative lengths, float [B]; they hold for the output, too.

        Returns
        -------
        torch.Tensor
            Waveforms with the duration of `wavs`, float32, at the output rate.

        Raises
        ------
        AudioError, ValueError
            See :meth:`encode_batch`.
        """
        return self._round_trip(self.codec.resynthesize, wavs, wav_lens)

    def convert_voice_batch(
        self,
        wavs: torch.Tensor,
        reference: VoiceReference,
        wav_lens: torch.Tensor | None = None,
        *,
        k: int = 4,
    ) -> torch.Tensor:
        """Convert a batch to another speaker's voice.

        Arguments
        ---------
        wavs : torch.Tensor
            One-channel waveforms at the codec's input rate, float [B, T].
        reference : VoiceReference
            The target speaker, from :meth:`prepare_reference`.
        wav_lens : torch.Tensor, optional
            Relative lengths, float [B]; they hold for the output, too.
        k : int
            Number of frames of the reference to average for each frame.

        Returns
        -------
        torch.Tensor
            Waveforms with the duration of `wavs`, float32, at the output rate.

        Raises
        ------
        VoiceError
            If another model made the reference, or it has fewer than `k`
            frames.
        AudioError, ValueError
            See :meth:`encode_batch`.
        """
        convert = partial(self.codec.convert_voice, reference=reference, k=k)
        return self._round_trip(convert, wavs, wav_lens)

    def _round_trip(
        self,
        method: Callable[..., Any],
        wavs: torch.Tensor,
        wav_lens: torch.Tensor | None,
    ) -> torch.Tensor:
        """Check a batch and run a method of the codec on it."""
        check_sig(wavs, name="wavs")
        wavs = wavs.to(self.device, torch.float32)
        lengths = absolute_lengths("wav_lens", wav_lens, wavs)
        with torch.no_grad(), self.inference_ctx:
            sig, _ = method(
                wavs, lengths=lengths, window=self.window, context=self.context
            )
        return sig.float()

    def encode_file(self, path: str | Path) -> torch.Tensor:
        """Encode an audio file to tokens, int64 [N]."""
        return self.tokenize_file(path).toks

    def tokenize_file(self, path: str | Path) -> TokenFile:
        """Encode an audio file to the content of a token file.

        Arguments
        ---------
        path : str or Path
            An audio file, of any sample rate and channel count.

        Returns
        -------
        TokenFile
            The tokens (on the CPU), the model, and the file's length and sample
            rate, which determine the exact duration.

        Raises
        ------
        AudioError
            If the file cannot be read, is damaged or absurd.
        """
        codec = self.codec
        with self._open(path) as reader, self.inference_ctx:
            toks = codec.encode_stream(
                reader.read,
                reader.num_samples,
                window=self.window,
                context=self.context,
                batch_size=self.batch_size,
            )
        return TokenFile(
            toks=toks,
            model=codec.name,
            fingerprint=self.fingerprint,
            # Of the file: rounding its length twice could add a sample.
            num_samples=reader.file_num_samples,
            sample_rate=reader.file_sample_rate,
            codebook_size=codec.codebook_size,
            token_rate=codec.token_rate,
        )

    def decode_to_file(
        self,
        tokens: torch.Tensor,
        path: str | Path,
        num_samples: int | None = None,
        convert: Convert | None = None,
    ) -> None:
        """Decode tokens to an audio file.

        Arguments
        ---------
        tokens : torch.Tensor
            The tokens of one recording, int64 [N].
        path : str or Path
            The file to write: ``.wav``, ``.flac`` or ``.ogg``.
        num_samples : int, optional
            Exact length at the output's rate, to crop or zero-pad to; by
            default that of the decoder's output.
        convert : callable, optional
            See :meth:`FocalCodec.decode`.

        Raises
        ------
        TokenError
            If there are no tokens or one is out of range.
        ValueError
            If the shape or type is wrong.
        """
        if tokens.ndim != 1:
            raise ValueError(
                f"tokens: must be [N], but its shape is {list(tokens.shape)}"
            )
        if len(tokens) == 0:
            raise TokenError("tokens: is empty; give at least one token")
        pieces = self.codec.decode_stream(
            tokens,
            window=self.window,
            batch_size=self.batch_size,
            convert=convert,
        )
        with (
            AudioWriter(path, self.codec.sample_rate_output) as writer,
            self.inference_ctx,
        ):
            for piece in _fit_length(pieces, num_samples):
                writer.write(piece.float())

    def resynthesize_file(
        self, in_path: str | Path, out_path: str | Path
    ) -> None:
        """Encode and decode an audio file, keeping its duration.

        Arguments
        ---------
        in_path : str or Path
            An audio file, of any sample rate and channel count.
        out_path : str or Path
            The file to write: ``.wav``, ``.flac`` or ``.ogg``.

        Raises
        ------
        AudioError
            If a file cannot be read or written.
        """
        file = self.tokenize_file(in_path)
        length = file.num_samples_at(self.codec.sample_rate_output)
        self.decode_to_file(file.toks, out_path, length)

    def prepare_reference(
        self,
        paths: str | Path | Sequence[str | Path],
        name: str | None = None,
        continuous: bool = False,
    ) -> VoiceReference:
        """Make a target speaker's reference from audio files.

        Arguments
        ---------
        paths : str or Path, or a sequence of them
            Audio files, or folders of them, of one speaker; a few minutes of
            clean speech are enough.
        name : str, optional
            Name of the speaker; that of the first path by default.
        continuous : bool
            Whether to use the encoder's features, see
            :meth:`VoiceReference.from_sigs`.

        Returns
        -------
        VoiceReference
            The reference.

        Raises
        ------
        AudioError
            If a file cannot be read, is damaged or absurd; the message names
            it.
        VoiceError
            If there are no audio files.

        Example
        -------
        >>> model = PretrainedFocalCodec.from_pretrained(
        ...     "tests/parity/offline_50hz"
        ... )
        >>> model.prepare_reference("speechbrain_focalcodec/assets/demo.flac")
        VoiceReference('demo', 6.0 s, of offline_50hz)
        """
        if isinstance(paths, str | Path):
            paths = [paths]
        files: list[Path] = []
        for path in map(Path, paths):
            found = find_audio_files(path) if path.is_dir() else [path]
            if not found:
                raise VoiceError(
                    f"{path}: holds no audio files; give speech of the target "
                    "speaker"
                )
            files += found
        if not files:
            raise VoiceError("paths: is empty; give at least one audio file")
        if name is None:
            first = Path(paths[0]).absolute()
            name = first.name if first.is_dir() else first.stem
        if continuous:
            return self._continuous_reference(files, name)
        toks = [self.tokenize_file(file).toks for file in files]
        with self.inference_ctx:
            return VoiceReference.from_toks(
                self.codec,
                toks,
                name,
                window=self.window,
                batch_size=self.batch_size,
            )

    def _open(self, path: str | Path) -> AudioReader:
        rate = self.codec.sample_rate_input
        return AudioReader(path, rate, channel=self.channel, strict=self.strict)

    def _continuous_reference(
        self, files: Sequence[Path], name: str
    ) -> VoiceReference:
        """A reference of the encoder's features."""
        codec = self.codec
        num = 0
        for file in files:
            with self._open(file) as reader:
                num += engine.num_frames(codec, reader.num_samples)

        def read() -> Iterator[torch.Tensor]:
            for file in files:
                with self._open(file) as reader:
                    yield from engine.feats_stream(
                        codec,
                        reader.read,
                        reader.num_samples,
                        self.window,
                        self.context,
                        self.batch_size,
                    )

        with self.inference_ctx:
            return VoiceReference.from_feats(
                codec, read(), name, num_frames=num
            )

    def convert_voice_file(
        self,
        source: str | Path,
        reference: VoiceReference,
        target: str | Path,
        *,
        k: int = 4,
    ) -> None:
        """Convert an audio file to another speaker's voice.

        Arguments
        ---------
        source : str or Path
            An audio file, of any sample rate and channel count.
        reference : VoiceReference
            The target speaker, from :meth:`prepare_reference`.
        target : str or Path
            The file to write, with the duration of `source`: ``.wav``,
            ``.flac`` or ``.ogg``.
        k : int
            Number of frames of the reference to average for each frame.

        Raises
        ------
        AudioError
            If a file cannot be read or written, or both are the same.
        VoiceError
            If another model made the reference, or it has fewer than `k`
            frames.
        """
        source, target = Path(source), Path(target)
        if source.exists() and target.exists() and source.samefile(target):
            raise AudioError(
                f"{source}: would be overwritten by its own conversion; give "
                "another target"
            )
        convert = reference.converter(self.codec, k)
        file = self.tokenize_file(source)
        length = file.num_samples_at(self.codec.sample_rate_output)
        self.decode_to_file(file.toks, target, length, convert)


def _fit_length(
    pieces: Iterator[torch.Tensor], num_samples: int | None
) -> Iterator[torch.Tensor]:
    """Crop or zero-pad a waveform in pieces to a number of samples."""
    missing = num_samples
    for piece in pieces:
        if missing is not None:
            piece = piece[:missing]
            missing -= len(piece)
        yield piece
    if missing:
        yield torch.zeros(missing)
