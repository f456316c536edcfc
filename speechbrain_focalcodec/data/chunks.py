"""Cuts long utterances into pieces that fit in memory."""

from typing import Any

from speechbrain_focalcodec.audio.files import resampled_length
from speechbrain_focalcodec.errors import DataError

__all__ = ["cut_entries", "entry_span"]


def entry_span(entry: dict[str, Any], sample_rate: int) -> tuple[int, int]:
    """First sample of a manifest entry or piece, and the one after its last.

    Samples are counted at `sample_rate` (Hz), after resampling.
    """
    chunk = entry.get("chunk")
    if chunk is not None:
        return chunk
    total = resampled_length(
        entry["num_samples"], entry["sample_rate"], sample_rate
    )
    return 0, total


def cut_entries(
    entries: dict[str, dict], sample_rate: int, chunk_samples: int
) -> dict[str, dict]:
    """Cut utterances into pieces of at most `chunk_samples` samples.

    The pieces of an utterance are equally long (within a sample) and depend on
    its length only. A piece has the utterance's keys without its text, and
    "chunk": its first sample and the one after its last, at `sample_rate`. Its
    id is that of the utterance followed by ``@START``; short utterances keep
    theirs.

    Raises
    ------
    DataError
        If `chunk_samples` is not positive, or two pieces have one id.

    Example
    -------
    >>> entry = {"num_samples": 25, "sample_rate": 16000}
    >>> pieces = cut_entries({"a": entry}, 16000, 10)
    >>> {utt_id: piece["chunk"] for utt_id, piece in pieces.items()}
    {'a@0': (0, 8), 'a@8': (8, 16), 'a@16': (16, 25)}
    """
    if chunk_samples < 1:
        raise DataError(f"chunk_samples must be positive, not {chunk_samples}")
    pieces: dict[str, dict] = {}
    for utt_id, entry in entries.items():
        _, total = entry_span(entry, sample_rate)
        count = max(-(-total // chunk_samples), 1)
        bounds = [i * total // count for i in range(count + 1)]
        for start, stop in zip(bounds, bounds[1:], strict=False):
            piece = {**entry, "chunk": (start, stop)}
            piece_id = utt_id
            if count > 1:
                piece_id = f"{utt_id}@{start}"
                piece["duration"] = (stop - start) / sample_rate
            # The dataset wants the same keys of all; a text is of the whole.
            piece.pop("text", None)
            if piece_id in pieces:
                raise DataError(
                    f"a piece of {utt_id} and another utterance have the id "
                    f"{piece_id}: rename the file"
                )
            pieces[piece_id] = piece
    return pieces
