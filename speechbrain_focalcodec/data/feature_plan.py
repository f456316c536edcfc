"""The plan of a feature cache: the encoder, and the utterances per shard.

The plan follows from the encoder and the manifest alone: a killed run
resumes, several processes agree on their shards, and the size is known before
anything is encoded.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from speechbrain_focalcodec.audio.files import resampled_length
from speechbrain_focalcodec.checkpoint import fingerprint_of
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.feature_shards import BLOCK, DTYPE
from speechbrain_focalcodec.errors import DataError

__all__ = ["CacheIdentity", "CachePlan", "SHARD_BYTES", "read_json"]

SHARD_BYTES = 2**28
VERSION = 2
# Bytes per frame and channel; about the bytes per utterance in a header, and
# per block of its frames.
ITEM_BYTES = DTYPE.itemsize
HEADER_BYTES = 256
CHECKSUM_BYTES = 12


@dataclass(frozen=True)
class CacheIdentity:
    """Identity of cached features: equal identities, equal features.

    Arguments
    ---------
    encoder : str
        SHA-256 over the encoder's configuration and weights.
    sample_rate : int
        Of the waveforms that it was given (Hz).
    dim : int
        Channels of the features.
    num_utterances, num_frames : int
        How many.
    utterances : str
        SHA-256 over the utterances' ids and lengths.
    dtype : str
        Of the features.
    version : int
        Of the layout.
    """

    encoder: str
    sample_rate: int
    dim: int
    num_utterances: int
    num_frames: int
    utterances: str
    dtype: str = "bfloat16"
    version: int = VERSION

    @property
    def tag(self) -> str:
        """SHA-256 over all fields; each shard carries it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, found: Mapping[str, Any], path: Path) -> None:
        """Refuse a cache that holds something else.

        Arguments
        ---------
        found : dict
            The identity that its file tells.
        path : Path
            That file, for the message.

        Raises
        ------
        DataError
            If it is of another encoder, rate, manifest or layout.
        """
        wanted = asdict(self)
        differing = [
            f"{key} is {found.get(key)}, not {value}"
            for key, value in wanted.items()
            if found.get(key) != value
        ]
        if not differing:
            return
        kinds = {
            "another layout": ("version", "dtype"),
            "another sample rate": ("sample_rate",),
            "another encoder": ("encoder", "dim"),
        }
        kind = "other utterances (another manifest, or length filter)"
        for name, keys in kinds.items():
            if any(found.get(key) != wanted[key] for key in keys):
                kind = name
                break
        raise DataError(
            f"the feature cache {path.parent} was made for {kind}: "
            f"{'; '.join(differing)}. Give feature_cache another folder, or "
            "remove this one"
        )


@dataclass(frozen=True)
class CachePlan:
    """Which shard holds which utterances.

    Arguments
    ---------
    identity : CacheIdentity
        Identity of the cached features.
    shards : tuple of dict
        Frames by utterance id, of each shard.
    """

    identity: CacheIdentity
    shards: tuple[dict[str, int], ...]

    @classmethod
    def make(
        cls,
        codec: FocalCodec,
        entries: Mapping[str, Mapping[str, Any]],
        shard_bytes: int = SHARD_BYTES,
    ) -> "CachePlan":
        """Plan a cache.

        Arguments
        ---------
        codec : FocalCodec
            Its encoder makes the features.
        entries : dict
            Utterances by their id, with "num_samples" and "sample_rate", as
            a manifest has them.
        shard_bytes : int
            Size of a shard; one utterance may be larger.

        Returns
        -------
        CachePlan
            The plan.
        """
        names = sorted(entries)
        lengths = [
            (entries[name]["num_samples"], entries[name]["sample_rate"])
            for name in names
        ]
        rate = codec.sample_rate_input
        samples = [resampled_length(*length, rate) for length in lengths]
        frames = codec.encoder.output_lengths(torch.tensor(samples)).tolist()
        dim = int(codec.encoder.output_dim)
        digest = hashlib.sha256()
        shards: list[dict[str, int]] = []
        size = shard_bytes
        for name, length, num in zip(names, lengths, frames, strict=True):
            digest.update(json.dumps([name, *length]).encode() + b"\n")
            grown = size + num * dim * ITEM_BYTES
            if not shards or grown > shard_bytes:
                shards.append({})
                grown = num * dim * ITEM_BYTES
            shards[-1][name] = num
            size = grown
        identity = CacheIdentity(
            encoder=_encoder_fingerprint(codec),
            sample_rate=rate,
            dim=dim,
            num_utterances=len(names),
            num_frames=sum(frames),
            utterances=digest.hexdigest(),
        )
        return cls(identity, tuple(shards))

    def path(self, folder: Path, number: int) -> Path:
        """File of a shard.

        Arguments
        ---------
        folder : Path
            The cache.
        number : int
            Which one.

        Returns
        -------
        Path
            The file.
        """
        name = f"features-{number:05d}-of-{len(self.shards):05d}.safetensors"
        return folder / name

    def num_bytes(self, numbers: Iterable[int] | None = None) -> int:
        """Size on disk.

        Arguments
        ---------
        numbers : iterable of int, optional
            Of these shards alone.

        Returns
        -------
        int
            Bytes: frames x channels x 2, and the headers (roughly).
        """
        chosen = range(len(self.shards)) if numbers is None else numbers
        return sum(
            sum(self.shards[i].values()) * self.identity.dim * ITEM_BYTES
            + sum(self.shards[i].values()) // BLOCK * CHECKSUM_BYTES
            + len(self.shards[i]) * HEADER_BYTES
            for i in chosen
        )


def _encoder_fingerprint(codec: FocalCodec) -> str:
    config = codec.config.model_dump(mode="json", exclude_defaults=True)
    kept = {
        key: value
        for key, value in config.items()
        if key in ("encoder_name", "encoder_config")
    }
    return fingerprint_of(kept, codec.encoder.state_dict())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read one of a cache's JSON files.

    Arguments
    ---------
    path : Path
        The file.

    Returns
    -------
    dict or None
        Its content; None where there is no file.

    Raises
    ------
    DataError
        If it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} of the feature cache is damaged ({error}): remove the "
            "file and train again; shards that fit are kept"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} of the feature cache is damaged: remove the file and "
            "train again; shards that fit are kept"
        )
    return content
