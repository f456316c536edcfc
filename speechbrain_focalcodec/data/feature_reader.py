"""Reads a feature cache, by utterance or as an item of a dataset."""

from pathlib import Path
from typing import Any

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_focalcodec.data.feature_plan import read_json
from speechbrain_focalcodec.data.feature_shards import FeatureShard
from speechbrain_focalcodec.data.reader import RandomSegment, SignalReader
from speechbrain_focalcodec.errors import DataError, abridge

__all__ = ["FeatureCache", "FeatureReader", "INDEX_FILE", "add_features"]

# Written last: with it, a cache is complete.
INDEX_FILE = "features.json"


class FeatureCache:
    """Random access to the features of a complete cache.

    Each worker of a loader maps a shard into memory when it first reads an
    utterance of it.

    Arguments
    ---------
    folder : str or Path
        The cache, see
        :func:`~speechbrain_focalcodec.data.feature_cache.make_feature_cache`.

    Raises
    ------
    DataError
        If the cache is incomplete, or a shard is missing or cut.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX_FILE
        index = read_json(path)
        if index is None:
            raise DataError(
                f"{folder} is no complete feature cache: it has no "
                f"{INDEX_FILE}; train with it, which makes what is missing"
            )
        self._paths: list[Path] = []
        self._places: dict[str, tuple[int, int]] = {}
        try:
            self.identity: dict[str, Any] = index["identity"]
            for number, shard in enumerate(index["shards"]):
                self._paths.append(self.folder / shard["file"])
                _check_size(self._paths[-1], shard["bytes"])
                for utt_id, frames in shard["frames"].items():
                    self._places[utt_id] = number, frames
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is damaged ({error!r}): remove the file and train "
                "again; shards that fit are kept"
            ) from error
        self._shards: dict[int, FeatureShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned opens shards itself.
        return self.__dict__ | {"_shards": {}}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, utt_id: str) -> bool:
        return utt_id in self._places

    def num_frames(self, utt_id: str) -> int:
        """Number of frames of an utterance."""
        return self._place(utt_id)[1]

    def read(
        self, utt_id: str, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Read features of an utterance, bfloat16 [frames, dim].

        Raises DataError if the cache lacks the utterance or its shard is
        damaged.
        """
        number, _ = self._place(utt_id)
        if number not in self._shards:
            self._shards[number] = FeatureShard(self._paths[number])
        return self._shards[number].read(utt_id, start, stop)

    def _place(self, utt_id: str) -> tuple[int, int]:
        try:
            return self._places[utt_id]
        except KeyError:
            raise DataError(
                f"the feature cache {self.folder} has no utterance {utt_id}"
            ) from None


class SampleSegment(RandomSegment):
    """Segments in samples that cover the segments drawn in frames.

    `hop` is the number of samples per frame.
    """

    def __init__(
        self, segment: RandomSegment, cache: FeatureCache, hop: int
    ) -> None:
        super().__init__(segment.segment_samples * hop, segment.seed)
        self.frames = segment
        self.cache = cache
        self.hop = hop

    def start(self, utt_id: str, num_samples: int) -> int:
        frames = self.cache.num_frames(utt_id)
        return self.hop * self.frames.start(utt_id, frames)


class FeatureReader:
    """Reads the features of an utterance, or of a random segment of it.

    Arguments
    ---------
    cache : FeatureCache
        The cache.
    segment : RandomSegment, optional
        Chooses the segment, counted in frames; if None, whole utterances are
        read. A shorter utterance is not padded.
    """

    def __init__(
        self, cache: FeatureCache, segment: RandomSegment | None = None
    ) -> None:
        self.cache = cache
        self.segment = segment

    def __call__(self, utt_id: str) -> torch.Tensor:
        """Return features, bfloat16 [frames, dim]."""
        if self.segment is None:
            return self.cache.read(utt_id)
        start = self.segment.start(utt_id, self.cache.num_frames(utt_id))
        stop = start + self.segment.segment_samples
        return self.cache.read(utt_id, start, stop)


def add_features(
    dataset: DynamicItemDataset,
    cache: FeatureCache,
    segment_frames: int | None = None,
    seed: int = 0,
    with_sig: bool = False,
    hop: int = 1,
) -> None:
    """Let a dataset return cached features ("feats") in place of waveforms.

    Arguments
    ---------
    dataset : DynamicItemDataset
        From :func:`~speechbrain_focalcodec.data.pipeline.make_dataset`. Its
        output keys become "id" and "feats".
    cache : FeatureCache
        Must hold all utterances of the dataset.
    segment_frames : int, optional
        Length of random segments, which change with
        :func:`~speechbrain_focalcodec.data.pipeline.set_epoch`.
    seed : int
        Seed of the segments' positions.
    with_sig : bool
        Also return the waveforms ("sig") of the same segments.
    hop : int
        Samples per frame, at the rate of the waveforms.

    Raises
    ------
    DataError
        If the cache lacks an utterance.
    """
    missing = [utt_id for utt_id in dataset.data_ids if utt_id not in cache]
    if missing:
        raise DataError(
            f"the feature cache {cache.folder} lacks {abridge(missing)}"
        )
    segment = None
    if segment_frames is not None:
        segment = RandomSegment(segment_frames, seed)
    dataset.add_dynamic_item(FeatureReader(cache, segment), "id", "feats")
    keys = ["id", "feats", "sig"] if with_sig else ["id", "feats"]
    for item in dataset.pipeline.dynamic_items:
        if segment is not None and isinstance(item.func, SignalReader):
            item.func.segment = SampleSegment(segment, cache, hop)
    dataset.set_output_keys(keys)


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"the feature cache lacks {path} ({error.strerror}): train with "
            "it again, which makes what is missing"
        ) from error
    if found != size:
        raise DataError(
            f"{path} of the feature cache has {found} bytes, not {size}: "
            "train with it again, which makes it anew"
        )
