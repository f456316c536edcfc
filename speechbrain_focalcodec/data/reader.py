"""Reads utterances, or random segments of them, from audio files."""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_focalcodec.audio.files import resampled_length
from speechbrain_focalcodec.audio.slices import read_slice
from speechbrain_focalcodec.data.chunks import entry_span
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.utils.extras import import_torchaudio

__all__ = ["RandomSegment", "SignalReader"]

# torchaudio's defaults, from which the reach of its filter follows.
LOWPASS_FILTER_WIDTH = 6
ROLLOFF = 0.99


class RandomSegment:
    """Chooses the start of an utterance's segment.

    The start depends on seed, epoch and utterance id only: not on the order or
    number of the loader's workers, and not on whether a run was resumed.

    Arguments
    ---------
    segment_samples : int
        Length of the segments, in samples (or frames, for features).
    seed : int
        Seed of the choice.
    name : str
        Name of the length in the error message.
    """

    def __init__(
        self,
        segment_samples: int,
        seed: int = 0,
        name: str = "segment_samples",
    ) -> None:
        if segment_samples < 1:
            raise DataError(f"{name} must be positive, not {segment_samples}")
        self.segment_samples = int(segment_samples)
        self.seed = int(seed)
        # Shared memory: loader workers that live on see the new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch; call it before the loader is iterated."""
        self._epoch.fill_(epoch)

    def start(self, utt_id: str, num_samples: int) -> int:
        """Start of an utterance's segment; 0 for short utterances."""
        choices = num_samples - self.segment_samples + 1
        if choices <= 1:
            return 0
        name = f"{self.seed}/{int(self._epoch)}/{utt_id}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % choices


class SignalReader:
    """Reads an utterance, or its segment, as mono at one sample rate.

    Only the necessary slice of the file is decoded. The dataset's pipeline
    calls it with the manifest's values.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the output, in Hz.
    segment : RandomSegment, optional
        Chooses the segment; if None, whole utterances are read.
    """

    def __init__(
        self, sample_rate: int, segment: RandomSegment | None = None
    ) -> None:
        self.sample_rate = int(sample_rate)
        self.segment = segment
        self._preloaded: dict[str, np.ndarray] = {}

    def __call__(
        self,
        utt_id: str,
        wav: str,
        num_samples: int,
        sample_rate: int,
        chunk: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Return the waveform, float32 [T].

        `num_samples` and `sample_rate` are those of the file; `chunk` is the
        utterance's first sample and the one after its last, at the reader's
        sample rate (by default the whole file).
        """
        if chunk is None:
            total = resampled_length(num_samples, sample_rate, self.sample_rate)
            chunk = 0, total
        start, stop = first, _ = chunk
        if self.segment is not None:
            start += self.segment.start(utt_id, stop - start)
            stop = min(start + self.segment.segment_samples, stop)
        if utt_id in self._preloaded:
            sig = _to_float(
                self._preloaded[utt_id][start - first : stop - first]
            )
        else:
            sig = _read_resampled(
                wav, num_samples, sample_rate, self.sample_rate, start, stop
            )
        return sig

    def preload(self, entries: dict[str, dict[str, Any]]) -> None:
        """Decode utterances into memory, for small corpora on slow disks.

        16-bit mono files at the output's sample rate are kept as int16, others
        as float32: the values equal those of reading on the fly.
        """

        def load(entry: dict[str, Any]) -> np.ndarray:
            path, rate = entry["wav"], entry["sample_rate"]
            start, stop = entry_span(entry, self.sample_rate)
            if rate == self.sample_rate:
                return read_slice(path, start, stop, allow_int16=True)
            rates = rate, self.sample_rate
            return _read_resampled(
                path, entry["num_samples"], *rates, start, stop
            ).numpy()

        with ThreadPoolExecutor() as pool:
            decoded = tqdm(
                pool.map(load, entries.values()),
                total=len(entries),
                desc="preload",
                unit="utt",
            )
            self._preloaded = dict(zip(entries, decoded, strict=True))


def _read_resampled(
    path: str,
    num_samples: int,
    sample_rate_from: int,
    sample_rate_to: int,
    start: int,
    stop: int,
) -> torch.Tensor:
    """Read samples `start` to `stop`, counted after resampling.

    They equal that slice of the whole utterance resampled: the part that is
    read starts at a common multiple of both sampling periods and is wider by
    the reach of the filter.
    """
    if sample_rate_from == sample_rate_to:
        return _to_float(read_slice(path, start, stop))
    divisor = math.gcd(sample_rate_from, sample_rate_to)
    period_from = sample_rate_from // divisor
    period_to = sample_rate_to // divisor
    cutoff = min(period_from, period_to) * ROLLOFF
    margin = math.ceil(LOWPASS_FILTER_WIDTH / cutoff) + 1
    first = max(0, start // period_to - margin)
    last = -(-stop // period_to) + margin
    sig = read_slice(
        path, first * period_from, min(last * period_from, num_samples)
    )
    sig = import_torchaudio().functional.resample(
        _to_float(sig),
        sample_rate_from,
        sample_rate_to,
        lowpass_filter_width=LOWPASS_FILTER_WIDTH,
        rolloff=ROLLOFF,
    )
    offset = start - first * period_to
    return sig[offset : offset + stop - start]


def _to_float(sig: np.ndarray) -> torch.Tensor:
    """Copy samples into a float32 tensor; full scale is 1."""
    scale = 32768 if sig.dtype == np.int16 else 1
    return torch.from_numpy(np.array(sig, dtype=np.float32)).div_(scale)
