"""What a metric is: the frame that the evaluation's metrics share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["SAMPLE_RATE", "Column", "Metric", "Row", "Sample"]

# All metrics compare at this rate (Hz), whatever the rates of the codecs.
SAMPLE_RATE = 16000

# What metrics say of one utterance, by field.
Row = dict[str, float | int | str | None]


@dataclass(frozen=True, eq=False)
class Sample:
    """One utterance, as a metric sees it.

    Arguments
    ---------
    id : str
        Names the utterance. The same original comes once for each codec under
        one id, so that a metric can keep what it found out about it.
    original : torch.Tensor
        Waveform [T], float32, at `SAMPLE_RATE`.
    output : torch.Tensor
        What a codec made of it, as long and at the same rate.
    text : str, optional
        What is said.
    voice : torch.Tensor, optional
        Voice conversion: speech [T'] of the speaker who should be heard.
        ``None`` in resynthesis, where it is the original's.
    toks : torch.Tensor, optional
        The utterance's tokens, int64 [N], where the codec has one codebook.

    Example
    -------
    >>> sample = Sample("a", torch.zeros(16000), torch.zeros(16000))
    >>> sample.voice is None
    True
    """

    id: str
    original: torch.Tensor
    output: torch.Tensor
    text: str | None = None
    voice: torch.Tensor | None = None
    toks: torch.Tensor | None = None


@dataclass(frozen=True)
class Column:
    """A figure of the summary, and how utterances make it.

    Arguments
    ---------
    key : str
        Its name in files.
    label : str
        Its heading in tables, with the unit.
    better : str, optional
        Which is better: ``higher`` or ``lower``; ``None`` where neither is.
    numerator : str
        The field of a row that is summed.
    denominator : str, optional
        The field of a row whose sum divides it, such as a number of words;
        by default the number of utterances, so that the figure is a mean.
    scale : float
        Factor, 100 for per cent.
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
    """Judges what codecs make of utterances.

    Making one loads its model, if it has any, and raises an error that names
    the extra or the file that is missing.

    Attributes
    ----------
    name : str
        What it is called on the command line.
    columns : tuple of Column
        What it adds to the summary.
    converts : bool
        Whether it makes sense of converted voices; where the output must be
        aligned with the original in all but quality, it does not.
    fingerprint : str
        Tells apart what gives other figures under the same name, such as a
        metric's model: an evaluation goes on with the same one alone.
    """

    name: str
    columns: tuple[Column, ...]
    converts: bool = False
    fingerprint: str = ""

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        """Judge utterances.

        Arguments
        ---------
        samples : sequence of Sample
            Utterances of one codec.

        Returns
        -------
        list of dict
            For each, the fields that `columns` name, and others that are worth
            reading, such as transcripts. A field is ``None`` where an
            utterance has no such figure (no speech for STOI, no text); it
            counts for no mean.
        """
