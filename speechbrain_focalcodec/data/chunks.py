"""Cutting long utterances into pieces that fit in memory."""

from typing import Any

from speechbrain_focalcodec.audio.files import resampled_length
from speechbrain_focalcodec.errors import DataError

__all__ = ["cut_entries", "entry_span"]


def entry_span(entry: dict[str, Any], sample_rate: int) -> tuple[int, int]:
    """Which samples of its file an entry is.

    Arguments
    ---------
    entry : dict
        An utterance of a manifest, or a piece that :func:`cut_entries` made.
    sample_rate : int
        The rate that the samples are counted at, after resampling, in Hz.

    Returns
    -------
    tuple
        The first sample and the one after the last.

    Example
    -------
    >>> entry_span({"num_samples": 24000, "sample_rate": 24000}, 16000)
    (0, 16000)
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
    """Cut utterances into pieces of at most so many samples.

    The pieces of an utterance are equally long (within a sample), so that
    none is too short to use, and together they are the utterance. They
    depend on its length alone. Each is an entry with the utterance's keys
    but its text, and "chunk", the samples that it is.

    Arguments
    ---------
    entries : dict
        The utterances by their id.
    sample_rate : int
        The rate that samples are counted at, after resampling, in Hz.
    chunk_samples : int
        Most samples of a piece.

    Returns
    -------
    dict
        The pieces by their id, that of the utterance followed by ``@START``
        in samples; utterances that are short enough keep theirs.

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
