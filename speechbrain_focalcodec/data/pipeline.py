"""Makes a SpeechBrain dataset of waveforms from a manifest."""

import math
from pathlib import Path
from typing import Any

from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_focalcodec.data.chunks import cut_entries, entry_span
from speechbrain_focalcodec.data.manifest import read_manifest
from speechbrain_focalcodec.data.reader import RandomSegment, SignalReader
from speechbrain_focalcodec.data.resumable import ResumableLoader
from speechbrain_focalcodec.errors import DataError

__all__ = ["RandomSegment", "SignalReader", "make_dataset", "set_epoch"]


def make_dataset(
    manifest: str | Path,
    data_root: str | Path,
    sample_rate: int,
    segment_samples: int | None = None,
    seed: int = 0,
    min_samples: int | None = None,
    max_samples: int | None = None,
    preload: bool = False,
    chunk_samples: int | None = None,
) -> DynamicItemDataset:
    """Make a dataset with the output keys "id" and "sig".

    Arguments
    ---------
    manifest : str or Path
        A manifest that data preparation has written.
    data_root : str or Path
        The data folder that preparation was given.
    sample_rate : int
        Sample rate of "sig", in Hz; other rates are resampled on the fly.
    segment_samples : int, optional
        Length of random segments, in samples at `sample_rate`; see
        :func:`set_epoch`. Utterances that are not longer are returned whole.
    seed : int
        Seed of the segments' positions.
    min_samples, max_samples : int, optional
        Leave out utterances with fewer or more samples at `sample_rate`.
    preload : bool
        Keep the decoded audio in memory.
    chunk_samples : int, optional
        Cut longer utterances into equal pieces of at most this many samples at
        `sample_rate`. Each piece is an item with its own id. `min_samples` and
        `max_samples` apply before the cut, segments are drawn within pieces.

    Returns
    -------
    DynamicItemDataset
        Items with "id" (str) and "sig" (float32 [T]).

    Raises
    ------
    DataError
        If the manifest is missing or damaged, no utterance is left, all are
        shorter than a segment, or a length is not positive.
    """
    entries = read_manifest(manifest)
    for utt_id, entry in entries.items():
        missing = {"wav", "num_samples", "sample_rate"} - entry.keys()
        if missing:
            raise DataError(
                f"the utterance {utt_id} of {manifest} lacks "
                f"{', '.join(sorted(missing))}: run the data preparation again"
            )
    lower = 0 if min_samples is None else min_samples
    upper = math.inf if max_samples is None else max_samples
    kept = {
        utt_id
        for utt_id, entry in entries.items()
        if lower <= entry_span(entry, sample_rate)[1] <= upper
    }
    if not kept:
        raise DataError(
            f"no utterance of {manifest} has between {lower} and {upper} "
            f"samples at {sample_rate} Hz"
        )
    dataset = DynamicItemDataset.from_json(
        str(manifest), replacements={"data_root": str(data_root)}
    )
    data = {
        utt_id: entry
        for utt_id, entry in dataset.data.items()
        if utt_id in kept
    }
    if chunk_samples is not None:
        data = cut_entries(data, sample_rate, chunk_samples)
    segment = None
    if segment_samples is not None:
        segment = RandomSegment(segment_samples, seed)
        spans = (entry_span(entry, sample_rate) for entry in data.values())
        longest = max(stop - start for start, stop in spans)
        if longest < segment_samples:
            raise DataError(
                f"segment_samples is {segment_samples}, but the longest "
                f"utterance of {manifest} has {longest} samples at "
                f"{sample_rate} Hz: lower segment_samples, or take longer "
                "utterances"
            )
    reader = SignalReader(sample_rate, segment)
    if preload:
        reader.preload(data)
    item = {
        "func": reader,
        "takes": ["id", "wav", "num_samples", "sample_rate"]
        + ([] if chunk_samples is None else ["chunk"]),
        "provides": "sig",
    }
    return DynamicItemDataset(data, [item], ["id", "sig"])


def set_epoch(dataset: Any, epoch: int) -> None:
    """Move a dataset's random segments, and its batches, to an epoch.

    Call it in ``on_stage_start`` of the training stage, before the loader is
    iterated.

    Arguments
    ---------
    dataset : DynamicItemDataset or DataLoader
        The dataset, a filtered or sorted version of it, or its loader.
    epoch : int
        The epoch.
    """
    if isinstance(dataset, ResumableLoader):
        dataset.set_epoch(epoch)
    dataset = getattr(dataset, "dataset", dataset)
    for item in dataset.pipeline.dynamic_items:
        segment = getattr(item.func, "segment", None)
        if isinstance(segment, RandomSegment):
            segment.set_epoch(epoch)
