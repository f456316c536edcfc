"""Word error rates, with openai-whisper as the recogniser.

The word error rate of resynthesised speech against the recogniser's own
transcript of the original ("dWER") tells how many words the codec made
unclear. Both libraries, jiwer and openai-whisper, are in the extra
``whisper``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from speechbrain_focalcodec.audio.files import resample
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = [
    "WhisperTranscriber",
    "WordErrors",
    "count_word_errors",
    "load_whisper",
    "normalize_text",
    "word_error_rate",
]

WHISPER_SAMPLE_RATE = 16000


def load_whisper(checkpoint_path: str | Path, device: str = "cpu") -> Any:
    """Load a Whisper model from a file.

    Arguments
    ---------
    checkpoint_path : str or Path
        A checkpoint of openai-whisper, read with ``weights_only=True``.
    device : str
        Where the model runs.

    Returns
    -------
    whisper.model.Whisper
        The model.

    Raises
    ------
    CheckpointError
        When the file is missing or is no Whisper checkpoint.
    ImportError
        When openai-whisper is not installed.

    Example
    -------
    >>> load_whisper("nowhere/tiny.en.pt")
    Traceback (most recent call last):
        ...
    speechbrain_focalcodec.errors.CheckpointError: No Whisper checkpoint at ...
    """
    path = Path(checkpoint_path)
    # A bare name such as "tiny.en" would make the package download it.
    if not path.is_file():
        raise CheckpointError(
            f"No Whisper checkpoint at {path}; give the path of a local "
            "checkpoint of openai-whisper, such as tiny.en.pt"
        )
    whisper = import_extra("whisper", "whisper")
    try:
        return whisper.load_model(str(path.resolve()), device=device)
    except Exception as error:
        raise CheckpointError(
            f"{path} is no checkpoint of openai-whisper: {error}"
        ) from error


class WhisperTranscriber:
    """Writes down English speech with a Whisper model, greedily.

    Nothing is downloaded. Utterances of any length are transcribed in windows
    of 30 s, each alone, at temperature 0 and without a second try, so that
    the same signal always gives the same text.

    Arguments
    ---------
    checkpoint_path, device
        Of the model, see :func:`load_whisper`, which may raise an error.

    Example
    -------
    >>> WhisperTranscriber("nowhere/tiny.en.pt")
    Traceback (most recent call last):
        ...
    speechbrain_focalcodec.errors.CheckpointError: No Whisper checkpoint at ...
    """

    def __init__(self, checkpoint_path: str | Path, device: str = "cpu"):
        self.model = load_whisper(checkpoint_path, device)

    @classmethod
    def of_model(cls, model: Any) -> "WhisperTranscriber":
        """Use a model that is in memory.

        Arguments
        ---------
        model : whisper.model.Whisper
            The model.

        Returns
        -------
        WhisperTranscriber
            Writes down with it.
        """
        transcriber = cls.__new__(cls)
        transcriber.model = model
        return transcriber

    def __call__(self, sig: torch.Tensor, sample_rate: int) -> str:
        """Transcribe one utterance.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform, shape [T].
        sample_rate : int
            Its sample rate in Hz; resampled to Whisper's 16 kHz.

        Returns
        -------
        str
            The text as Whisper writes it.
        """
        sig = resample(sig.detach().float(), sample_rate, WHISPER_SAMPLE_RATE)
        result = self.model.transcribe(
            sig.cpu().numpy(),
            **self._decoding,
            condition_on_previous_text=False,
            # These would drop a window that seems bad: it has to count.
            no_speech_threshold=None,
            logprob_threshold=None,
            compression_ratio_threshold=None,
        )
        return result["text"].strip()

    def transcribe_batch(self, sigs: Sequence[torch.Tensor]) -> list[str]:
        """Transcribe utterances together, which a GPU does faster.

        The texts are those of single calls, but for what rounding decides.

        Arguments
        ---------
        sigs : sequence of torch.Tensor
            Waveforms [T] at 16 kHz, of any lengths.

        Returns
        -------
        list of str
            Their texts.
        """
        whisper = import_extra("whisper", "whisper")
        frames = whisper.audio.N_FRAMES
        texts: dict[int, str] = {}
        windows: dict[int, torch.Tensor] = {}
        for index, sig in enumerate(sigs):
            if not 0 < len(sig) <= whisper.audio.N_SAMPLES:
                texts[index] = self(sig, WHISPER_SAMPLE_RATE)
                continue
            # As `transcribe` has it: silence beyond the end for the levels,
            # and then zeros.
            mel = whisper.log_mel_spectrogram(
                sig.detach().float().cpu(),
                self.model.dims.n_mels,
                padding=whisper.audio.N_SAMPLES,
            )
            windows[index] = whisper.pad_or_trim(mel[:, :-frames], frames)
        if windows:
            options = whisper.DecodingOptions(**self._decoding)
            dtype = torch.float16 if options.fp16 else torch.float32
            mels = torch.stack(list(windows.values()))
            results = self.model.decode(
                mels.to(self.model.device, dtype), options
            )
            for index, result in zip(windows, results, strict=True):
                texts[index] = result.text.strip()
        return [texts[index] for index in range(len(sigs))]

    @property
    def _decoding(self) -> dict[str, Any]:
        """How a window becomes text."""
        return {
            "language": "en",
            "temperature": 0.0,
            "fp16": self.model.device.type != "cpu",
            "without_timestamps": True,
        }


@dataclass(frozen=True)
class WordErrors:
    """How far a transcript is from the right one.

    Arguments
    ---------
    edits : int
        Substitutions, deletions and insertions.
    words : int
        Words of the reference.
    """

    edits: int
    words: int


@lru_cache(maxsize=1)
def _normalizer():
    normalizers = import_extra("whisper.normalizers", "whisper")
    return normalizers.EnglishTextNormalizer()


def normalize_text(text: str) -> str:
    """Bring English text to one spelling, as Whisper's authors do.

    Arguments
    ---------
    text : str
        Any English text.

    Returns
    -------
    str
        Lower case, no punctuation, numbers as digits, British as American.

    Example
    -------
    >>> normalize_text("Fifty colours, isn't it?")
    '50 colors is not it'
    """
    return _normalizer()(text).strip()


def count_word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Count the word errors of one utterance, after normalisation.

    Arguments
    ---------
    reference : str
        The right text.
    hypothesis : str
        The recognised text.

    Returns
    -------
    WordErrors
        The edits and the number of words of the reference (it may be 0).

    Example
    -------
    >>> count_word_errors("The cat sat.", "the bat sat down")
    WordErrors(edits=2, words=3)
    """
    jiwer = import_extra("jiwer", "whisper")
    reference = normalize_text(reference)
    hypothesis = normalize_text(hypothesis)
    if not reference:  # jiwer refuses it
        return WordErrors(edits=len(hypothesis.split()), words=0)
    counts = jiwer.process_words(reference, hypothesis)
    return WordErrors(
        edits=counts.substitutions + counts.deletions + counts.insertions,
        words=counts.hits + counts.substitutions + counts.deletions,
    )


def word_error_rate(
    references: Sequence[str], hypotheses: Sequence[str]
) -> float:
    """Word error rate of a corpus: all edits over all reference words.

    Arguments
    ---------
    references : Sequence[str]
        The right texts.
    hypotheses : Sequence[str]
        The recognised texts, in the same order.

    Returns
    -------
    float
        0 for no error; with many insertions it is above 1.

    Raises
    ------
    ValueError
        When the numbers of texts differ or the references have no word.

    Example
    -------
    >>> word_error_rate(["the cat", "sat down"], ["The cat.", "sat"])
    0.25
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references but {len(hypotheses)} hypotheses"
        )
    errors = [
        count_word_errors(reference, hypothesis)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    words = sum(error.words for error in errors)
    if words == 0:
        raise ValueError("The references have no word, so no error rate")
    return sum(error.edits for error in errors) / words
