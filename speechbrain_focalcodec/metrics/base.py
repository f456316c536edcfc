"""Base classes of metrics, and the samples that they measure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from speechbrain_focalcodec.metrics.values import as_figure, is_measurable

__all__ = ["SAMPLE_RATE", "Column", "Metric", "Row", "Sample", "ScoreMetric"]

# Sample rate of all metrics in Hz.
SAMPLE_RATE = 16000

# Results for one utterance by field.
Row = dict[str, float | int | str | None]


@dataclass(frozen=True, eq=False)
class Sample:
    """One utterance to measure.

    Arguments
    ---------
    id : str
        Id of the utterance. It is the same for all codecs, so that a metric
        can reuse results for the original.
    original : torch.Tensor
        Original waveform [T], float32, at `SAMPLE_RATE`.
    output : torch.Tensor
        Output of the codec, with the same length and sample rate.
    text : str, optional
        Transcript.
    voice : torch.Tensor, optional
        Voice conversion: speech [T'] of the target speaker. None in
        resynthesis.
    toks : torch.Tensor, optional
        Tokens, int64 [N], of a codec with one codebook.
    """

    id: str
    original: torch.Tensor
    output: torch.Tensor
    text: str | None = None
    voice: torch.Tensor | None = None
    toks: torch.Tensor | None = None


@dataclass(frozen=True)
class Column:
    """A figure of the summary, and the fields that it is computed from.

    Arguments
    ---------
    key : str
        Name in files.
    label : str
        Heading in tables, with the unit.
    better : str, optional
        ``higher`` or ``lower``; None if neither is better.
    numerator : str
        Field of a row; summed over utterances.
    denominator : str, optional
        Field of a row, such as the number of words; its sum is the divisor.
        By default the number of utterances, so that the figure is a mean.
    scale : float
        Factor, 100 for percent.
    digits : int
        Decimals in tables.
    """

    key: str
    label: str
    better: Literal["higher", "lower"] | None
    numerator: str
    denominator: str | None = None
    scale: float = 1.0
    digits: int = 2


class Metric(ABC):
    """Measures the outputs of codecs.

    The constructor loads the metric's model, if any. Its errors name the
    missing extra or file.

    Attributes
    ----------
    name : str
        Name on the command line.
    columns : tuple of Column
        Columns of the summary.
    converts : bool
        True if the metric applies to converted voices. Metrics that need an
        output aligned with the original do not.
    fingerprint : str
        Identity of the metric's model and settings. An evaluation resumes
        only with the same one.
    """

    name: str
    columns: tuple[Column, ...]
    converts: bool = False
    fingerprint: str = ""

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        """Measure utterances.

        Arguments
        ---------
        samples : sequence of Sample
            Utterances of one codec.

        Returns
        -------
        list of dict
            For each utterance, the fields named by `columns` and others such as
            transcripts. None (no speech, no text) is left out of means.
        """


class ScoreMetric(Metric):
    """A metric with one score per utterance, named after its column.

    The score is None if the output is empty or not finite, or if the original
    is and the metric does not apply to converted voices.
    """

    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        key = self.columns[0].key
        rows: list[Row] = [{key: None} for _ in samples]
        usable = [
            (row, sample)
            for row, sample in zip(rows, samples, strict=True)
            if is_measurable(sample.output)
            and (self.converts or is_measurable(sample.original))
        ]
        if usable:
            scores = self.scores([sample for _, sample in usable])
            for (row, _), score in zip(usable, scores, strict=True):
                row[key] = None if score is None else as_figure(score)
        return rows

    @abstractmethod
    def scores(self, samples: Sequence[Sample]) -> Sequence[Any]:
        """Scores of utterances; None if one has no score."""
