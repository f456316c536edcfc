"""One shard of a feature cache: a safetensors file.

It holds one bfloat16 tensor [frames, dim] an utterance, named by the
utterance's id, and two strings of metadata: ``cache``, the tag of the cache
that it belongs to, and ``crc32``, a JSON table of each utterance's CRC-32
values, one for every :data:`BLOCK` frames. Those of the blocks that are read
are compared.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["BLOCK", "DTYPE", "FeatureShard", "is_whole", "write_shard"]

DTYPE = torch.bfloat16
# Frames that share a checksum: so few that little more than a segment is read.
BLOCK = 16
# Raised by safetensors for damaged files.
DAMAGED = (
    SafetensorError,
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
)


def write_shard(
    path: str | Path, feats: Mapping[str, torch.Tensor], tag: str
) -> None:
    """Write a shard, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file.
    feats : dict
        Features [frames, dim] by utterance id; rounded to bfloat16.
    tag : str
        Of the cache that the shard belongs to.
    """
    rounded = {
        utt_id: x.to("cpu", DTYPE).contiguous() for utt_id, x in feats.items()
    }
    sums = {utt_id: _checksums(x) for utt_id, x in rounded.items()}
    with atomic_path(path) as temporary:
        save_file(rounded, temporary, {"cache": tag, "crc32": json.dumps(sums)})


def is_whole(
    path: str | Path, frames: Mapping[str, int], dim: int, tag: str
) -> bool:
    """Tell whether a shard is there with all that it shall hold.

    The header is read alone; bytes are compared when an utterance is read.

    Arguments
    ---------
    path : str or Path
        The file.
    frames : dict
        Frames of each utterance that it shall hold.
    dim : int
        Channels.
    tag : str
        Of the cache that it shall belong to.

    Returns
    -------
    bool
        False for a file that is missing, cut, or holds something else.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> is_whole(path, {"utt1": 5}, 2, "tag")
    False
    >>> write_shard(path, {"utt1": torch.zeros(5, 2)}, "tag")
    >>> is_whole(path, {"utt1": 5}, 2, "tag")
    True
    """
    try:
        shard = FeatureShard(path)
        found = {utt_id: shard.shape(utt_id) for utt_id in shard.sums}
    except DataError:
        return False
    wanted = {utt_id: [num, dim] for utt_id, num in frames.items()}
    return shard.tag == tag and found == wanted


class FeatureShard:
    """Reads utterances of a shard, which is mapped into memory.

    Arguments
    ---------
    path : str or Path
        The file.

    Raises
    ------
    DataError
        If it is missing or damaged.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> write_shard(path, {"utt1": torch.ones(5, 2)}, "tag")
    >>> FeatureShard(path).read("utt1", 1, 3)
    tensor([[1., 1.],
            [1., 1.]], dtype=torch.bfloat16)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = safe_open(self.path, "pt")
            metadata = self._file.metadata()
            self.tag: str = metadata["cache"]
            self.sums: dict[str, list[int]] = json.loads(metadata["crc32"])
        except DAMAGED as error:
            raise self._damaged(error) from None

    def shape(self, utt_id: str) -> list[int]:
        """Shape of an utterance's features.

        Arguments
        ---------
        utt_id : str
            The utterance.

        Returns
        -------
        list of int
            Frames and channels.

        Raises
        ------
        DataError
            If the shard has no such utterance.
        """
        try:
            return list(self._file.get_slice(utt_id).get_shape())
        except DAMAGED as error:
            raise self._damaged(error) from None

    def read(
        self, utt_id: str, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        """Read frames of an utterance.

        The blocks around them are read, and compared with their checksums.

        Arguments
        ---------
        utt_id : str
            The utterance.
        start, stop : int
            The frames; all by default.

        Returns
        -------
        torch.Tensor
            bfloat16 [stop - start, dim], a copy.

        Raises
        ------
        DataError
            If the utterance is missing or damaged.
        """
        try:
            stored = self._file.get_slice(utt_id)
            frames = stored.get_shape()[0]
            stop = frames if stop is None else min(stop, frames)
            first = start // BLOCK
            feats = stored[first * BLOCK : -(-stop // BLOCK) * BLOCK]
            sums = _checksums(feats)
            wanted = self.sums[utt_id][first : first + len(sums)]
            whole = feats.dtype == DTYPE and sums == wanted
        except DAMAGED as error:
            raise self._damaged(error) from None
        if not whole:
            raise self._damaged(f"the checksum of {utt_id} differs")
        return feats[start - first * BLOCK : stop - first * BLOCK].clone()

    def _damaged(self, why: object) -> DataError:
        return DataError(
            f"{self.path} of the feature cache is missing or damaged ({why}): "
            "remove the file; the next training that uses the cache makes it "
            "again"
        )


def _checksums(feats: torch.Tensor) -> list[int]:
    data = feats.contiguous().view(torch.uint8).numpy()
    return [
        zlib.crc32(block.data)
        for block in np.split(data, range(BLOCK, len(data), BLOCK))
    ]
