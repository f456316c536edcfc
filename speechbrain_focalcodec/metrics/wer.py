"""Word error rates, with openai-whisper as the recogniser.

jiwer and openai-whisper are in the extra ``whisper``.
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
]

WHISPER_SAMPLE_RATE = 16000


def load_whisper(checkpoint_path: str | Path, device: str = "cpu") -> Any:
    """Load a checkpoint of openai-whisper, read with ``weights_only=True``.

    Raises a CheckpointError if the file is missing or not such a checkpoint.
    """
    path = Path(checkpoint_path)
    # The package would download a bare name such as "tiny.en".
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
            f"{path} is not a checkpoint of openai-whisper: {error}"
        ) from error


class WhisperTranscriber:
    """Transcribes English speech with a Whisper model, greedily.

    Nothing is downloaded. Utterances of any length are transcribed in
    independent windows of 30 s, at temperature 0 and without fallback, so the
    text of a signal does not vary.

    Arguments
    ---------
    checkpoint_path, device
        Arguments of :func:`load_whisper`.
    """

    def __init__(self, checkpoint_path: str | Path, device: str = "cpu"):
        self.model = load_whisper(checkpoint_path, device)

    @classmethod
    def of_model(cls, model: Any) -> "WhisperTranscriber":
        """Use a loaded Whisper model."""
        transcriber = cls.__new__(cls)
        transcriber.model = model
        return transcriber

    def __call__(self, sig: torch.Tensor, sample_rate: int) -> str:
        """Text of a waveform [T], resampled to 16 kHz."""
        sig = resample(sig.detach().float(), sample_rate, WHISPER_SAMPLE_RATE)
        result = self.model.transcribe(
            sig.cpu().numpy(),
            **self._decoding,
            condition_on_previous_text=False,
            # Keep windows that Whisper would drop as bad.
            no_speech_threshold=None,
            logprob_threshold=None,
            compression_ratio_threshold=None,
        )
        return result["text"].strip()

    def transcribe_batch(self, sigs: Sequence[torch.Tensor]) -> list[str]:
        """Transcribe waveforms [T] at 16 kHz in one batch; faster on a GPU.

        The texts are those of single calls, up to rounding.
        """
        whisper = import_extra("whisper", "whisper")
        frames = whisper.audio.N_FRAMES
        texts: dict[int, str] = {}
        windows: dict[int, torch.Tensor] = {}
        for index, sig in enumerate(sigs):
            if not 0 < len(sig) <= whisper.audio.N_SAMPLES:
                texts[index] = self(sig, WHISPER_SAMPLE_RATE)
                continue
            # As in `transcribe`: the levels include silence after the end, and
            # the window is padded with zeros.
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
        """Decoding options of a window."""
        return {
            "language": "en",
            "temperature": 0.0,
            "fp16": self.model.device.type != "cpu",
            "without_timestamps": True,
        }


@dataclass(frozen=True)
class WordErrors:
    """Substitutions, deletions and insertions, and words of the reference."""

    edits: int
    words: int


@lru_cache(maxsize=1)
def _normalizer():
    normalizers = import_extra("whisper.normalizers", "whisper")
    return normalizers.EnglishTextNormalizer()


def normalize_text(text: str) -> str:
    """Normalise English text with Whisper's normaliser.

    Returns lower case without punctuation, numbers as digits, and American
    spelling.

    Example
    -------
    >>> normalize_text("Fifty colours, isn't it?")
    '50 colors is not it'
    """
    return _normalizer()(text).strip()


def count_word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Count the word errors of one utterance, after normalisation."""
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
