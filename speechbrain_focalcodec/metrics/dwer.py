"""Word error rates of codecs' outputs, by Whisper."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Column,
    Metric,
    Row,
    Sample,
)
from speechbrain_focalcodec.metrics.originals import Originals
from speechbrain_focalcodec.metrics.values import is_measurable
from speechbrain_focalcodec.metrics.wer import (
    WhisperTranscriber,
    count_word_errors,
    normalize_text,
)
from speechbrain_focalcodec.metrics.whisper_import import (
    WHISPER_SMALL,
    load_hub_whisper,
)
from speechbrain_focalcodec.utils.files import sha256_of

__all__ = ["WordErrorRates"]

Transcribe = Callable[[list[torch.Tensor]], list[str]]


class WordErrorRates(Metric):
    """dWER, and the WER of output and original if the text is known.

    The reference of dWER is the recogniser's transcript of the original. All
    are errors divided by words of the corpus. The rows hold the transcripts.

    Arguments
    ---------
    transcribe : callable
        Returns the texts of a list of waveforms [T].
    name : str
        Name of the metric; if not ``wer``, it is also the prefix of the fields.
    label : str
        Name of the recogniser in headings.

    Example
    -------
    >>> texts = {1: "the cat sat", 2: "the bat"}
    >>> metric = WordErrorRates(lambda sigs: [texts[len(x)] for x in sigs])
    >>> sample = Sample("a", torch.zeros(1), torch.zeros(2), "A cat sat.")
    >>> [row] = metric([sample])
    >>> row["dwer_edits"], row["dwer_words"], row["wer_original_edits"]
    (2, 3, 1)
    """

    converts = True

    def __init__(
        self, transcribe: Transcribe, name: str = "wer", label: str = ""
    ):
        self.name = name
        self.transcribe = transcribe
        self.originals = Originals(self._transcribe)
        self.prefix = "" if name == "wer" else name.replace("-", "_") + "_"
        suffix = f", {label}" if label else ""
        self.columns = tuple(
            Column(
                f"{self.prefix}{key}",
                f"{heading}{suffix} (%)",
                "lower",
                f"{self.prefix}{key}_edits",
                f"{self.prefix}{words}_words",
                100,
                1,
            )
            for key, heading, words in (
                ("dwer", "dWER", "dwer"),
                ("wer", "WER", "wer"),
                ("wer_original", "WER of the original", "wer"),
            )
        )

    @classmethod
    def of_checkpoint(
        cls, path: str | Path, device: str = "cpu"
    ) -> "WordErrorRates":
        """The metric ``wer``: recognise with a checkpoint of openai-whisper."""
        metric = cls(_batched(WhisperTranscriber(path, device)))
        metric.fingerprint = sha256_of(path)
        return metric

    @classmethod
    def of_hub(
        cls, source: str | Path | None = None, device: str = "cpu"
    ) -> "WordErrorRates":
        """The metric ``whisper-small``, as in the papers.

        `source` is a repository or a local folder, see
        :func:`~speechbrain_focalcodec.metrics.whisper_import.load_hub_whisper`.
        """
        model = load_hub_whisper(source or WHISPER_SMALL, device)
        transcriber = WhisperTranscriber.of_model(model)
        return cls(_batched(transcriber), "whisper-small", "Whisper-small")

    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        originals = self.originals(
            [sample.id for sample in samples],
            [sample.original for sample in samples],
        )
        outputs = self._transcribe([sample.output for sample in samples])
        return [
            self._count(sample, original, output)
            for sample, original, output in zip(
                samples, originals, outputs, strict=True
            )
        ]

    def _count(
        self, sample: Sample, original: str | None, output: str | None
    ) -> Row:
        found: Row = {
            "transcript_original": original,
            "transcript_output": output,
        }
        found |= dict.fromkeys(
            f"{key}_{what}"
            for key in ("dwer", "wer", "wer_original")
            for what in ("edits", "words")
        )
        del found["wer_original_words"]  # those of the text
        if original is not None and output is not None:
            errors = count_word_errors(original, output)
            found |= {"dwer_edits": errors.edits, "dwer_words": errors.words}
            if sample.text is not None and normalize_text(sample.text):
                errors = count_word_errors(sample.text, output)
                found |= {"wer_edits": errors.edits, "wer_words": errors.words}
                errors = count_word_errors(sample.text, original)
                found["wer_original_edits"] = errors.edits
        return {self.prefix + key: value for key, value in found.items()}

    def _transcribe(self, sigs: list[torch.Tensor]) -> list[str | None]:
        texts: list[str | None] = [None] * len(sigs)
        usable = [i for i, sig in enumerate(sigs) if is_measurable(sig)]
        if usable:
            found = self.transcribe([sigs[i] for i in usable])
            for index, text in zip(usable, found, strict=True):
                texts[index] = text
        return texts


def _batched(transcriber: WhisperTranscriber) -> Transcribe:
    """Transcribe in batches on a GPU, one by one on a CPU."""

    def transcribe(sigs: list[torch.Tensor]) -> list[str]:
        if transcriber.model.device.type != "cpu":
            return transcriber.transcribe_batch(sigs)
        return [transcriber(sig, SAMPLE_RATE) for sig in sigs]

    return transcribe
