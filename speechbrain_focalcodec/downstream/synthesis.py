"""Inference interface of a trained synthesiser."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from speechbrain_focalcodec.audio.files import write_audio
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.downstream.generation import (
    Generation,
    Sampling,
    generate,
    generate_stream,
)
from speechbrain_focalcodec.downstream.interfaces import (
    TaskInterface,
    read_whole,
)
from speechbrain_focalcodec.downstream.selection import best_of
from speechbrain_focalcodec.downstream.speakers import (
    SAMPLE_RATE,
    VoiceEmbedder,
)
from speechbrain_focalcodec.downstream.text import UNKNOWN, normalise
from speechbrain_focalcodec.errors import ConfigError, VoiceError
from speechbrain_focalcodec.streaming.sessions import StreamingDecoder

__all__ = ["Speech", "TokenTTS"]

#: A recording or an embedding.
Reference = str | Path | torch.Tensor


@dataclass(frozen=True)
class Speech:
    """Synthesised speech.

    Arguments
    ---------
    sig : torch.Tensor
        Waveform, float32 [T].
    sample_rate : int
        Sample rate in Hz.
    toks : torch.Tensor
        Tokens, int64 [N].
    ended : bool
        False if the utterance was cut at the maximum length.
    transcript : str, optional
        Text found by `recognize`, if given.
    """

    sig: torch.Tensor
    sample_rate: int
    toks: torch.Tensor
    ended: bool
    transcript: str | None = None


class TokenTTS(TaskInterface):
    """A trained synthesiser: text and a voice to tokens and a waveform."""

    TASK = "tts"

    @property
    def codec(self) -> FocalCodec:
        """The codec that decodes tokens.

        Raises
        ------
        ConfigError
            If the model was loaded without one.
        """
        codec = self.task.front_end.codec
        if codec is None:
            raise ConfigError(
                "this model has no codec: pass codec=... to from_pretrained"
            )
        return codec.to(self.device)

    @cached_property
    def sampling(self) -> Sampling:
        """Default sampling parameters, from the model's configuration."""
        return Sampling(**self.task.config.sampling.model_dump())

    @cached_property
    def _embedder(self) -> VoiceEmbedder:
        return VoiceEmbedder(str(self.device))

    def embed_voice(self, reference: Reference) -> torch.Tensor:
        """Embed a voice, to be used as `reference` several times.

        Arguments
        ---------
        reference : str, Path or torch.Tensor
            A recording of any sample rate and channel count. An embedding is
            checked and returned.

        Returns
        -------
        torch.Tensor
            Embedding [D].

        Raises
        ------
        VoiceError
            If the recording has too little speech, or the embedding has
            another shape.
        AudioError
            If the file cannot be read or is damaged.
        """
        dim = self.task.config.speaker_dim
        if isinstance(reference, torch.Tensor):
            embedding: torch.Tensor | None = reference
        else:
            embedding = self._embedder(read_whole(reference, SAMPLE_RATE)[0])
        if embedding is None:
            raise VoiceError(
                f"{reference}: has too little speech for an embedding; "
                "give some seconds"
            )
        if embedding.shape != (dim,):
            raise VoiceError(
                f"reference: an embedding of this model has the shape [{dim}], "
                f"not {list(embedding.shape)}; give the path of a recording "
                "or the result of embed_voice"
            )
        return embedding.to(self.device, torch.float32)

    def generate(
        self,
        text: str,
        reference: Reference | None = None,
        *,
        seed: int = 0,
        max_seconds: float | None = None,
        tries: int = 1,
        recognize: Callable[[Speech], str] | None = None,
        normalize: Callable[[str], str] = normalise,
        **sampling: Any,
    ) -> Speech:
        """Synthesise a text.

        Arguments
        ---------
        text : str
            The text. Characters that are not in the training texts are left
            out; digits often have to be written as words.
        reference : str, Path or torch.Tensor, optional
            The voice: a recording, or an embedding from :meth:`embed_voice`.
            Required by models with voices, an error for others.
        seed : int
            Seed of the sampling.
        max_seconds : float, optional
            Maximum length; by default that of the model's configuration.
        tries : int
            Number of candidates with different seeds; `recognize` selects the
            best.
        recognize : callable, optional
            Returns the text of a :class:`Speech`; for example
            ``lambda speech: asr.transcribe_tokens(speech.toks)[0]`` with a
            :class:`~speechbrain_focalcodec.downstream.interfaces.TokenASR`.
        normalize : callable
            Applied to the recognised text and `text` before they are compared.
        **sampling : dict
            Arguments of
            :class:`~speechbrain_focalcodec.downstream.generation.Sampling` that
            replace the model's: temperature, top_p, max_repeats, ...

        Returns
        -------
        Speech
            Waveform and tokens.

        Raises
        ------
        ValueError
            If the text is empty or an argument is out of range.
        VoiceError
            If the reference is missing, unexpected or unusable.
        """
        if tries < 1:
            raise ValueError(f"tries must be 1 or more, got {tries}")
        if tries > 1 and recognize is None:
            raise ValueError(
                f"tries={tries} needs recognize, which chooses among them"
            )
        if recognize is None:
            return self.generate_batch(
                [text],
                reference,
                seed=seed,
                max_seconds=max_seconds,
                **sampling,
            )[0]
        candidates = self.generate_batch(
            [text] * tries,
            reference,
            seed=[seed + number for number in range(tries)],
            max_seconds=max_seconds,
            **sampling,
        )
        best = best_of(candidates, recognize, text, normalize)
        return replace(best.candidate, transcript=best.transcript)

    def generate_batch(
        self,
        texts: Sequence[str],
        reference: Reference | Sequence[Reference] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        max_seconds: float | None = None,
        **sampling: Any,
    ) -> list[Speech]:
        """Synthesise several texts in one batch.

        The result for a text does not depend on the other texts.

        Arguments
        ---------
        texts : sequence of str
            The texts.
        reference : str, Path or torch.Tensor, or a sequence of them, optional
            One voice for all texts, or one each.
        seed : int or sequence of int
            One seed for all texts, or one each.
        max_seconds : float, optional
            Maximum length of each; by default that of the configuration.
        **sampling : dict
            As for :meth:`generate`.

        Returns
        -------
        list of Speech
            One per text.

        Raises
        ------
        ValueError
            If a text is empty, or an argument is out of range.
        VoiceError
            If the reference is missing, unexpected or unusable.
        """
        if isinstance(texts, str):
            raise ValueError("texts: must be a list of texts; see generate")
        pieces = [self._pieces(text) for text in texts]
        if not pieces:
            return []
        voices = self._voices(reference, len(pieces))
        with self.inference_ctx:
            generations = generate(
                self._model,
                torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True),
                torch.tensor([len(row) for row in pieces], device=self.device),
                voices,
                max_tokens=self._max_tokens(max_seconds),
                sampling=replace(self.sampling, **sampling),
                seed=seed,
            )
        return [self._speech(generation) for generation in generations]

    def generate_to_file(
        self,
        text: str,
        path: str | Path,
        reference: Reference | None = None,
        **options: Any,
    ) -> Speech:
        """Synthesise a text to an audio file.

        Arguments
        ---------
        text : str
            The text.
        path : str or Path
            The file to write: ``.wav``, ``.flac`` or ``.ogg``.
        reference : str, Path or torch.Tensor, optional
            The voice.
        **options : dict
            As for :meth:`generate`.

        Returns
        -------
        Speech
            The speech in the file.

        Raises
        ------
        AudioError
            If the file cannot be written.
        ValueError, VoiceError
            As for :meth:`generate`.
        """
        speech = self.generate(text, reference, **options)
        write_audio(path, speech.sig, speech.sample_rate)
        return speech

    def generate_stream(
        self,
        text: str,
        reference: Reference | None = None,
        *,
        seed: int = 0,
        max_seconds: float | None = None,
        chunk_seconds: float = 0.16,
        **sampling: Any,
    ) -> Iterator[torch.Tensor]:
        """Synthesise a text in chunks of waveform; needs a causal codec.

        The chunks add up to the waveform of :meth:`generate`.

        Arguments
        ---------
        text : str
            The text.
        reference : str, Path or torch.Tensor, optional
            The voice.
        seed : int
            Seed of the sampling.
        max_seconds : float, optional
            Maximum length; by default that of the configuration.
        chunk_seconds : float
            Approximate length of a chunk.
        **sampling : dict
            As for :meth:`generate`.

        Returns
        -------
        iterator of torch.Tensor
            Waveforms, float32 [T] on the CPU, at the codec's output rate.

        Raises
        ------
        StreamError
            If the codec is not causal.
        ValueError, VoiceError
            As for :meth:`generate`.
        """
        decoder = StreamingDecoder(self.codec)
        voices = self._voices(reference, 1)
        if chunk_seconds <= 0:
            raise ValueError(
                f"chunk_seconds must be positive, got {chunk_seconds}"
            )
        stream = generate_stream(
            self._model,
            self._pieces(text),
            None if voices is None else voices[0],
            max_tokens=self._max_tokens(max_seconds),
            chunk_tokens=max(1, round(chunk_seconds * self._rate)),
            sampling=replace(self.sampling, **sampling),
            seed=seed,
        )

        def chunks() -> Iterator[torch.Tensor]:
            for toks in stream:
                yield torch.as_tensor(decoder.push(toks)).float().cpu()
            rest = torch.as_tensor(decoder.flush()).float().cpu()
            if len(rest):
                yield rest

        return chunks()

    def forward(self, text: str, reference: Reference | None = None) -> Speech:
        return self.generate(text, reference)

    @property
    def _model(self) -> Any:
        return self.task.model

    @property
    def _rate(self) -> float:
        return self.task.front_end.rate

    def _max_tokens(self, seconds: float | None) -> int:
        seconds = self.task.config.max_seconds if seconds is None else seconds
        if not 0 < seconds < math.inf:
            raise ValueError(f"max_seconds must be positive, got {seconds}")
        return max(1, math.floor(seconds * self._rate))

    def _pieces(self, text: str) -> torch.Tensor:
        if self.task.tokenizer is None:
            raise ConfigError("task: has no tokenizer; load_tokenizer sets it")
        # The model has not been trained on unknown pieces.
        tokenizer = self.task.tokenizer
        pieces = [p for p in tokenizer.encode(text) if p != UNKNOWN]
        if not tokenizer.decode(pieces):
            raise ValueError(
                f"text: {text!r} has no pieces that the model was trained on"
            )
        return torch.tensor(pieces, dtype=torch.int64, device=self.device)

    def _voices(self, reference: Any, count: int) -> torch.Tensor | None:
        """Embeddings [count, D] of one voice, or of one voice per text."""
        if self.task.config.speaker_dim is None:
            if reference is not None:
                raise VoiceError(
                    "reference: this model was trained without voices; "
                    "leave it out"
                )
            return None
        if reference is None:
            raise VoiceError(
                "reference: is missing; give a recording of the voice"
            )
        if isinstance(reference, str | Path | torch.Tensor):
            return self.embed_voice(reference).expand(count, -1)
        if len(reference) != count:
            raise ValueError(
                f"reference: has {len(reference)} voices for {count} texts"
            )
        return torch.stack([self.embed_voice(each) for each in reference])

    def _speech(self, generation: Generation) -> Speech:
        codec = self.codec
        toks = generation.toks
        sig = torch.zeros(0)
        if len(toks):
            with torch.no_grad(), self.inference_ctx:
                sig = codec.decode(toks[None])[0][0].float().cpu()
        return Speech(
            sig, codec.sample_rate_output, toks.cpu(), generation.ended
        )
