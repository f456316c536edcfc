"""Trained tasks, ready to use: recognition and classification.

Synthesis is in :mod:`speechbrain_focalcodec.downstream.synthesis`.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

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


class TaskInterface(Pretrained):
    """What the interfaces of all tasks share.

    Load one with :meth:`from_pretrained`, which executes no code of the
    model, or with SpeechBrain's ``from_hparams(source, savedir=...)``, which
    executes the folder's ``hyperparams.yaml``: for folders that you trust
    only.

    Arguments
    ---------
    modules : dict
        The task, under the key ``task``.
    hparams : dict, optional
        Hyperparameters, as ``from_hparams`` gives them.
    run_opts : dict, optional
        SpeechBrain's run options, such as ``{"device": "cuda"}``.
    freeze_params : bool
        Whether to freeze the weights and set evaluation mode.
    """

    MODULES_NEEDED = ["task"]
    #: Which task this is for, as `config.json` calls it.
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
            A folder that a recipe has left (``OUTPUT_FOLDER/model``), or a
            hub repository.
        revision : str, optional
            The hub revision.
        run_opts : dict, optional
            SpeechBrain's run options, such as ``{"device": "cuda"}``.
        codec : FocalCodec, str or Path, optional
            The codec, or where it is, in place of the one that the folder
            names. It must be the one that the task was trained with.

        Returns
        -------
        TaskInterface
            On the device of `run_opts` (a GPU when there is one).

        Raises
        ------
        ConfigError
            If its configuration is damaged or unknown, or of another task,
            or the codec is another one.
        CheckpointError
            If files are missing, damaged or do not fit.
        """
        task = load_task(source, revision, codec)
        return cls(modules={"task": task}, run_opts=run_opts)

    @property
    def task(self) -> Task:
        """The parts of the task."""
        return self.mods.task

    def hear(
        self,
        wavs: torch.Tensor,
        wav_lens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the front end makes of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            One-channel waveforms at the front end's sample rate, float [B, T].
        wav_lens : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        prepared : torch.Tensor
            Tokens [B, N] or features [B, N, C].
        lengths : torch.Tensor
            int64 [B].

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
        return self.task.front_end.prepare(wavs, lengths)

    def hear_file(self, path: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
        """What the front end makes of an audio file.

        Arguments
        ---------
        path : str or Path
            An audio file, of any sample rate and channel count.

        Returns
        -------
        prepared : torch.Tensor
            Tokens [1, N] or features [1, N, C].
        lengths : torch.Tensor
            int64 [1].

        Raises
        ------
        AudioError
            If the file cannot be read, is damaged or absurd.
        """
        return self.hear(read_whole(path, self.task.front_end.sample_rate))

    def given(
        self, tokens: torch.Tensor, token_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Check tokens that need not be heard.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 [B, N], or [N] of one utterance.
        token_lens : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        toks : torch.Tensor
            int64 [B, N].
        lengths : torch.Tensor
            int64 [B].

        Raises
        ------
        ConfigError
            If the task takes no tokens.
        TokenError
            If there are none, or one is out of range.
        ValueError
            If a shape, type or relative length is wrong.
        """
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
        """Run the network and its output layer.

        Arguments
        ---------
        prepared : torch.Tensor
            Tokens [B, N] or features [B, N, C].
        lengths : torch.Tensor
            int64 [B].

        Returns
        -------
        torch.Tensor
            Scores, float32 [B, N, outputs] or [B, outputs].
        """
        task: Any = self.task
        with torch.no_grad(), self.inference_ctx:
            x = task.network(task.front_end(prepared, lengths), lengths)
            return task.output(x).float()


class TokenASR(TaskInterface):
    """A trained recogniser.

    Example
    -------
    >>> from trained_tasks import trained_asr  # in tests/
    >>> asr = TokenASR.from_pretrained(trained_asr(getfixture("tmp_path")))
    >>> text = asr.transcribe_file("speechbrain_focalcodec/assets/demo.flac")
    >>> texts = asr.transcribe_tokens(torch.zeros(50).long())
    """

    TASK = "asr"

    @cached_property
    def decoder(self) -> CTCDecoder:
        """Finds the text; its beam is that of the training's test."""
        if self.task.tokenizer is None:
            raise ConfigError("task: has no tokenizer; load_tokenizer sets it")
        return CTCDecoder(self.task.tokenizer, self.task.config.beam_size)

    def transcribe_file(self, path: str | Path) -> str:
        """Recognise an audio file.

        Arguments
        ---------
        path : str or Path
            An audio file, of any sample rate and channel count.

        Returns
        -------
        str
            Its text.

        Raises
        ------
        AudioError
            If the file cannot be read, is damaged or absurd.
        """
        return self._transcribe(*self.hear_file(path))[0]

    def transcribe_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[str]:
        """Recognise a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            One-channel waveforms at the front end's sample rate, float [B, T].
        wav_lens : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        list of str
            A text each.

        Raises
        ------
        AudioError
            If the batch is empty or not finite.
        ValueError
            If a shape, type or relative length is wrong.
        """
        return self._transcribe(*self.hear(wavs, wav_lens))

    def transcribe_tokens(
        self, tokens: torch.Tensor, token_lens: torch.Tensor | None = None
    ) -> list[str]:
        """Recognise tokens, without waveforms.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 [B, N], or [N] of one utterance.
        token_lens : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        list of str
            A text each.

        Raises
        ------
        ConfigError
            If the model was trained on features or log-mel bands.
        TokenError
            If there are none, or one is out of range.
        ValueError
            If a shape, type or relative length is wrong.
        """
        return self._transcribe(*self.given(tokens, token_lens))

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[str]:
        """As :meth:`transcribe_batch`.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms [B, T].
        wav_lens : torch.Tensor, optional
            Relative lengths [B].

        Returns
        -------
        list of str
            A text each.
        """
        return self.transcribe_batch(wavs, wav_lens)

    def _transcribe(
        self, prepared: torch.Tensor, lengths: torch.Tensor
    ) -> list[str]:
        log_probs = self.scores(prepared, lengths).log_softmax(-1)
        return self.decoder(log_probs, lengths)


class Classification(NamedTuple):
    """What an utterance was taken for.

    Arguments
    ---------
    label : str
        The likeliest class.
    probability : float
        How likely it is.
    probabilities : dict
        Of all classes, by their names.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


class TokenClassifier(TaskInterface):
    """A trained classification of utterances: speakers, keywords.

    Example
    -------
    >>> from trained_tasks import trained_classifier  # in tests/
    >>> folder = trained_classifier(getfixture("tmp_path"))
    >>> classifier = TokenClassifier.from_pretrained(folder)
    >>> path = "speechbrain_focalcodec/assets/demo.flac"
    >>> classifier.classify_file(path).label in classifier.classes
    True
    """

    TASK = "classification"

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.task.config.classes

    def classify_file(self, path: str | Path) -> Classification:
        """Classify an audio file.

        Arguments
        ---------
        path : str or Path
            An audio file, of any sample rate and channel count.

        Returns
        -------
        Classification
            What it was taken for.

        Raises
        ------
        AudioError
            If the file cannot be read, is damaged or absurd.
        """
        return self._classify(*self.hear_file(path))[0]

    def classify_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[Classification]:
        """Classify a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            One-channel waveforms at the front end's sample rate, float [B, T].
        wav_lens : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        list of Classification
            One each.

        Raises
        ------
        AudioError
            If the batch is empty or not finite.
        ValueError
            If a shape, type or relative length is wrong.
        """
        return self._classify(*self.hear(wavs, wav_lens))

    def classify_tokens(
        self, tokens: torch.Tensor, token_lens: torch.Tensor | None = None
    ) -> list[Classification]:
        """Classify tokens, without waveforms.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 [B, N], or [N] of one utterance.
        token_lens : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        list of Classification
            One each.

        Raises
        ------
        ConfigError
            If the model was trained on features or log-mel bands.
        TokenError
            If there are none, or one is out of range.
        ValueError
            If a shape, type or relative length is wrong.
        """
        return self._classify(*self.given(tokens, token_lens))

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> list[Classification]:
        """As :meth:`classify_batch`.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms [B, T].
        wav_lens : torch.Tensor, optional
            Relative lengths [B].

        Returns
        -------
        list of Classification
            One each.
        """
        return self.classify_batch(wavs, wav_lens)

    def _classify(
        self, prepared: torch.Tensor, lengths: torch.Tensor
    ) -> list[Classification]:
        rows = self.scores(prepared, lengths).softmax(-1).tolist()
        found = []
        for row in rows:
            probabilities = dict(zip(self.classes, row, strict=True))
            best = max(probabilities, key=probabilities.__getitem__)
            found.append(
                Classification(best, probabilities[best], probabilities)
            )
        return found


def read_whole(path: str | Path, sample_rate: int) -> torch.Tensor:
    """Read an audio file for a batch of one.

    Arguments
    ---------
    path : str or Path
        An audio file, of any sample rate and channel count.
    sample_rate : int
        What it shall have, in Hz.

    Returns
    -------
    torch.Tensor
        Waveform [1, T].

    Raises
    ------
    AudioError
        If the file cannot be read, is damaged or absurd.

    Example
    -------
    >>> read_whole("speechbrain_focalcodec/assets/demo.flac", 8000).shape
    torch.Size([1, 48160])
    """
    with AudioReader(path, sample_rate) as reader:
        return reader.read(0, reader.num_samples)[None]
