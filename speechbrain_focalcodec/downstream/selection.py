"""Selects the best of several synthesised utterances with a recogniser."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from speechbrain.utils.edit_distance import accumulatable_wer_stats

from speechbrain_focalcodec.downstream.text import normalise

__all__ = ["Best", "best_of"]

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Best(Generic[Candidate]):
    """The selected candidate, its index and its transcript.

    `wer` and `cer` are word and character error rates in percent.
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
    """Select the candidate with the lowest word error rate.

    Ties are broken by the character error rate, then by order. Candidates
    after one without errors are not consumed, so a generator need not make
    them.

    Arguments
    ---------
    candidates : iterable
        Waveforms, tokens or other inputs of `transcribe`.
    transcribe : callable
        Returns the text of a candidate.
    text : str
        The text to compare with.
    normalize : callable
        Applied to both texts. For Whisper, which writes punctuation and
        digits, use
        :func:`speechbrain_focalcodec.metrics.wer.normalize_text`.

    Returns
    -------
    Best
        The selected candidate.

    Raises
    ------
    ValueError
        If there are no candidates, or the text has no words.

    Example
    -------
    >>> best = best_of(["no", "go  on"], lambda candidate: candidate, "Go on")
    >>> best.index, best.transcript, best.wer
    (1, 'GO ON', 0.0)
    """
    reference = normalize(text)
    if not reference:
        raise ValueError(f"text: {text!r} has no word to compare with")
    best: Best[Candidate] | None = None
    for index, candidate in enumerate(candidates):
        transcript = normalize(transcribe(candidate))
        wer = _error_rate(reference.split(), transcript.split())
        cer = _error_rate(reference, transcript)
        if best is None or (wer, cer) < (best.wer, best.cer):
            best = Best(candidate, index, transcript, wer, cer)
        if not wer and not cer:
            break
    if best is None:
        raise ValueError("there is no candidate to choose from")
    return best


def _error_rate(reference: str | list[str], found: str | list[str]) -> float:
    """Edit distance divided by the length of `reference`, in percent."""
    return accumulatable_wer_stats([reference], [found])["WER"]
