"""Inference interfaces of trained recognisers and classifiers.

Synthesis is in :mod:`speechbrain_focalcodec.downstream.synthesis`.
"""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference.interfaces import Pretrained

from speechbrain_focalcodec.audio.gate import check_sig
from speechbrain_focalcodec.audio.stream import AudioReader
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.downstream.asr import CTCDecoder
from speechbrain_focalcodec.downstream.front_ends import TokenFrontEnd
from speechbrain_focalcodec.downstream.task import Task, load_task
from speechbrain_focalcodec.errors import ConfigError, TokenError
from speechbrain_focalcodec.utils.lengths import absolute_lengths

__all__ = ["Classification", "TaskInterface", "TokenASR", "TokenClassifier"]

T = TypeVar("T", bound="TaskInterface")
Result = TypeVar("Result")


class TaskInterface(Pretrained):
    """Base class of the interfaces of all tasks.

    :meth:`from_pretrained` executes no code of the model. SpeechBrain's
    ``from_hparams(source, savedir=...)`` executes the folder's
    ``hyperparams.yaml``; use it only for folders that you trust.

    Arguments
    ---------
    modules : dict
        The task under the key ``task``.
    hparams : dict, optional
        Hyperparameters, as ``from_hparams`` passes them.
    run_opts : dict, optional
        SpeechBrain's run options, such as ``{"device": "cuda"}``.
    freeze_params : bool
        Freeze the weights and set eval mode.
    """

    MODULES_NEEDED = ["task"]
    #: Name of the task in `config.json`.
    TASK: ClassVar[str]

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
        task: Any = modules["task"]
        if task.config.task != self.TASK:
            raise ConfigError(
                f"the task of this model is {task.config.task}; "
                f"{type(self).__name__} is for {self.TASK}"
            )
        hparams = dict(hparams or {})
        hparams.setdefault(
            "audio_normalizer",
            AudioNormalizer(sample_rate=task.front_end.sample_rate),
        )
        super().__init__(modules, hparams, run_opts, freeze_params)

    @classmethod
    def from_pretrained(
        cls: type[T],
        source: str | Path,
        revision: str | None = None,
        run_opts: dict | None = None,
        *,
        codec: FocalCodec | str | Path | None = None,
    ) -> T:
        """Load a task from JSON and safetensors; no code is executed.

        Arguments
        ---------
        source : str or Path
            A folder written by training (``OUTPUT_FOLDER/model``) or a hub
            repository.
        revision : str, optional
            Revision on the hub.
        run_opts : dict, optional
            SpeechBrain's run options, such as ``{"device": "cuda"}``.
        codec : FocalCodec, str or Path, optional
            The codec or its source; by default the one in the configuration.
            It must be the codec that the task was trained with.

        Returns
        -------
        TaskInterface
            On the device of `run_opts` (a GPU when there is one).

        Raises
        ------
        ConfigError
            If the configuration is damaged, unknown or of another task, or
            the codec is another one.
        CheckpointError
            If files are missing, damaged or do not fit together.
        """
        task = load_task(source, revision, codec)
        return cls(modules={"task": task}, run_opts=run_opts)

    @property
    def task(self) -> Task:
        """The parts of the task."""
        return self.mods.task


class SpeechInterface(TaskInterface, Generic[Result]):
    """Base class of tasks with one result per utterance."""

    def predict_file(self, path: str | Path) -> Result:
        """Process an audio file.

        Arguments
        ---------
        path : str or Path
            An audio file of any sample rate and channel count.

        Returns
        -------
        str or Classification
            The result.

        Raises
        ------
        AudioError
            If the file cannot be read or is damaged.
        """
        return self.predict_batch(
            read_whole(path, self.task.front_end.sample_rate)
        )[0]

    def predict_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[Result]:
        """Process a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            One-channel waveforms at the front end's sample rate, float [B, T].
        wav_lens : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        list of str or Classification
            One result per utterance.

        Raises
        ------
        AudioError
            If the batch is empty or not finite.
        ValueError
            If a shape, type or relative length is wrong.
        """
        return self.results(*self.prepare(wavs, wav_lens))

    def predict_tokens(
        self, tokens: torch.Tensor, token_lens: torch.Tensor | None = None
    ) -> list[Result]:
        """Process tokens, without waveforms.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 [B, N], or [N] of one utterance.
        token_lens : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        list of str or Classification
            One result per utterance.

        Raises
        ------
        ConfigError
            If the model was trained on features or log-mel bands.
        TokenError
            If there are no tokens, or one is out of range.
        ValueError
            If a shape, type or relative length is wrong.
        """
        return self.results(*self.check_tokens(tokens, token_lens))

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[Result]:
        return self.predict_batch(wavs, wav_lens)

    def prepare(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, N] or features [B, N, C] of waveforms, and lengths."""
        check_sig(wavs, name="wavs")
        wavs = wavs.to(self.device, torch.float32)
        lengths = absolute_lengths("wav_lens", wav_lens, wavs)
        return self.task.front_end.prepare(wavs, lengths)

    def check_tokens(
        self, tokens: torch.Tensor, token_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Checked tokens [B, N] and their absolute lengths [B]."""
        front_end = self.task.front_end
        if not isinstance(front_end, TokenFrontEnd):
            raise ConfigError(
                "this model was trained on "
                f"{self.task.config.front_end.input}: it takes audio, no tokens"
            )
        if tokens.ndim == 1:
            tokens = tokens[None]
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ValueError(
                "tokens: must be int64 [B, N] or [N], but is "
                f"{tokens.dtype} {list(tokens.shape)}"
            )
        if tokens.numel() == 0:
            raise TokenError("tokens: is empty; give at least one token")
        size = front_end.codebook_size
        if bool(((tokens < 0) | (tokens >= size)).any()):
            raise TokenError(
                f"tokens: must be within 0..{size - 1}, but are within "
                f"{int(tokens.min())}..{int(tokens.max())}"
            )
        tokens = tokens.to(self.device)
        return tokens, absolute_lengths("token_lens", token_lens, tokens)

    def scores(
        self, prepared: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Scores of tokens or features, float32 [B, N, V] or [B, V]."""
        task: Any = self.task
        with torch.no_grad(), self.inference_ctx:
            x = task.network(task.front_end(prepared, lengths), lengths)
            return task.output(x).float()

    @abstractmethod
    def results(
        self, prepared: torch.Tensor, lengths: torch.Tensor
    ) -> list[Result]:
        """Results of tokens or features, one per utterance."""


class TokenASR(SpeechInterface[str]):
    """A trained recogniser; returns texts."""

    TASK = "asr"

    @cached_property
    def decoder(self) -> CTCDecoder:
        """CTC decoder with the beam of the training's test."""
        if self.task.tokenizer is None:
            raise ConfigError("task: has no tokenizer; load_tokenizer sets it")
        return CTCDecoder(self.task.tokenizer, self.task.config.beam_size)

    def transcribe_file(self, path: str | Path) -> str:
        """Recognise an audio file; see :meth:`predict_file`."""
        return self.predict_file(path)

    def transcribe_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[str]:
        """Recognise a batch of waveforms; see :meth:`predict_batch`."""
        return self.predict_batch(wavs, wav_lens)

    def transcribe_tokens(
        self, tokens: torch.Tensor, token_lens: torch.Tensor | None = None
    ) -> list[str]:
        """Recognise tokens; see :meth:`predict_tokens`."""
        return self.predict_tokens(tokens, token_lens)

    def results(
        self, prepared: torch.Tensor, lengths: torch.Tensor
    ) -> list[str]:
        log_probs = self.scores(prepared, lengths).log_softmax(-1)
        return self.decoder(log_probs, lengths)


class Classification(NamedTuple):
    """Class of an utterance.

    Arguments
    ---------
    label : str
        The likeliest class.
    probability : float
        Its probability.
    probabilities : dict
        Probabilities of all classes by name.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


class TokenClassifier(SpeechInterface[Classification]):
    """A trained classifier of utterances: speakers, keywords."""

    TASK = "classification"

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.task.config.classes

    def classify_file(self, path: str | Path) -> Classification:
        """Classify an audio file; see :meth:`predict_file`."""
        return self.predict_file(path)

    def classify_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[Classification]:
        """Classify a batch of waveforms; see :meth:`predict_batch`."""
        return self.predict_batch(wavs, wav_lens)

    def classify_tokens(
        self, tokens: torch.Tensor, token_lens: torch.Tensor | None = None
    ) -> list[Classification]:
        """Classify tokens; see :meth:`predict_tokens`."""
        return self.predict_tokens(tokens, token_lens)

    def results(
        self, prepared: torch.Tensor, lengths: torch.Tensor
    ) -> list[Classification]:
        results = []
        for row in self.scores(prepared, lengths).softmax(-1).tolist():
            probabilities = dict(zip(self.classes, row, strict=True))
            best = max(probabilities, key=probabilities.__getitem__)
            results.append(
                Classification(best, probabilities[best], probabilities)
            )
        return results


def read_whole(path: str | Path, sample_rate: int) -> torch.Tensor:
    """Read and resample an audio file to a waveform [1, T]."""
    with AudioReader(path, sample_rate) as reader:
        return reader.read(0, reader.num_samples)[None]
