"""The best of several tries, by what a recogniser hears."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from speechbrain.utils.edit_distance import accumulatable_wer_stats

from speechbrain_focalcodec.downstream.text import normalise

__all__ = ["Best", "best_of"]

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Best(Generic[Candidate]):
    """The candidate that was chosen.

    Arguments
    ---------
    candidate : object
        What it is.
    index : int
        Which it was.
    transcript : str
        What was heard, normalised.
    wer : float
        Its word error rate, in percent.
    cer : float
        Its character error rate, in percent.
    """

    candidate: Candidate
    index: int
    transcript: str
    wer: float
    cer: float


def best_of(
    candidates: Iterable[Candidate],
    transcribe: Callable[[Candidate], str],
    text: str,
    normalize: Callable[[str], str] = normalise,
) -> Best[Candidate]:
    """The candidate whose transcript is nearest to the text.

    The lowest word error rate wins; among equals the lowest character error
    rate, and then the first. Once one is without error, the others are left
    as they are: given by a generator, they are not even made.

    Arguments
    ---------
    candidates : iterable
        Waveforms, tokens or what else `transcribe` takes.
    transcribe : callable
        Gives a candidate's text.
    text : str
        What was to be said.
    normalize : callable
        Brings both texts to one spelling. Whisper writes punctuation and
        digits: give :func:`speechbrain_focalcodec.metrics.wer.normalize_text`
        with it.

    Returns
    -------
    Best
        The best.

    Raises
    ------
    ValueError
        If there is no candidate, or the text has no word.

    Example
    -------
    >>> best = best_of(["no", "go  on"], lambda heard: heard, "Go on")
    >>> best.index, best.transcript, best.wer
    (1, 'GO ON', 0.0)
    """
    wanted = normalize(text)
    if not wanted:
        raise ValueError(f"text: {text!r} has no word to compare with")
    best: Best[Candidate] | None = None
    for index, candidate in enumerate(candidates):
        heard = normalize(transcribe(candidate))
        wer = _error_rate(wanted.split(), heard.split())
        cer = _error_rate(wanted, heard)
        if best is None or (wer, cer) < (best.wer, best.cer):
            best = Best(candidate, index, heard, wer, cer)
        if not wer and not cer:
            break
    if best is None:
        raise ValueError("there is no candidate to choose from")
    return best


def _error_rate(wanted: str | list[str], found: str | list[str]) -> float:
    """Edits by the length of what was wanted, in percent."""
    return accumulatable_wer_stats([wanted], [found])["WER"]
