"""Making a feature cache: a frozen encoder's features of whole utterances.

A cache is a folder:

    plan.json                            written first: whose features
    features-00000-of-00007.safetensors  shards, see feature_shards.py
    features.json                        written last: the shards' utterances

A run that is killed leaves whole shards alone, and the next one makes the
rest. Under DDP the processes share the shards.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_broadcast,
    if_main_process,
    is_distributed_initialized,
    run_on_main,
)
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from speechbrain_focalcodec.audio.files import resampled_length
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.feature_plan import (
    SHARD_BYTES,
    CacheIdentity,
    CachePlan,
    read_json,
)
from speechbrain_focalcodec.data.feature_reader import INDEX_FILE, FeatureCache
from speechbrain_focalcodec.data.feature_shards import is_whole, write_shard
from speechbrain_focalcodec.data.reader import SignalReader
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.batching import plan_batches
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["BATCH_SAMPLES", "PLAN_FILE", "make_feature_cache"]

logger = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
# Samples that are encoded at once, padding included: two minutes at 16 kHz.
BATCH_SAMPLES = 120 * 16000
GB = 1e9


def make_feature_cache(
    folder: str | Path,
    codec: FocalCodec,
    entries: Mapping[str, Mapping[str, Any]],
    num_workers: int = 0,
    shard_bytes: int = SHARD_BYTES,
    batch_samples: int = BATCH_SAMPLES,
) -> FeatureCache:
    """Make a feature cache, or finish one that an earlier run began.

    Utterances of similar length are encoded together, with exact masking and
    in the precision of the codec's weights; features do not depend on the
    batch. A complete cache is opened and nothing is encoded.
    Where `torch.distributed` runs, all processes must call this.

    Arguments
    ---------
    folder : str or Path
        The cache; made when missing.
    codec : FocalCodec
        Its encoder, frozen, on the device to encode on.
    entries : dict
        Utterances by their id, with "wav" (a file that exists),
        "num_samples" and "sample_rate": a manifest's.
    num_workers : int
        Processes that read audio; 0 reads between the batches.
    shard_bytes : int
        Size of a new cache's shards; a cache that was begun keeps its own.
    batch_samples : int
        Samples to encode at once, padding included.

    Returns
    -------
    FeatureCache
        The complete cache.

    Raises
    ------
    DataError
        If the folder holds a cache of another encoder, sample rate or
        manifest, or the disk is too small for the missing shards.
    AudioError
        If an utterance cannot be read.

    Example
    -------
    >>> import numpy, soundfile
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "utt1.wav", numpy.zeros(16000), 16000)
    >>> entry = {"num_samples": 16000, "sample_rate": 16000}
    >>> entry["wav"] = str(folder / "utt1.wav")
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> cache = make_feature_cache(folder / "cache", codec, {"utt1": entry})
    >>> cache.read("utt1").shape
    torch.Size([50, 80])
    """
    folder = Path(folder)
    plan = _fit_plan(folder, codec, entries, shard_bytes)
    # One process looks, so that all go the same way.
    missing = ddp_broadcast(_look(folder, plan) if if_main_process() else None)
    if missing is not None:
        _check_space(folder, plan, missing)
        run_on_main(_start, [folder, plan, shard_bytes])
        rank, world_size = _place()
        _make_shards(
            folder,
            plan,
            missing[rank::world_size],
            codec,
            entries,
            num_workers,
            batch_samples,
        )
        ddp_barrier()
        run_on_main(_finish, [folder, plan])
    return FeatureCache(folder)


def _place() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    if not is_distributed_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _fit_plan(
    folder: Path,
    codec: FocalCodec,
    entries: Mapping[str, Mapping[str, Any]],
    shard_bytes: int,
) -> CachePlan:
    """Plan a cache as it was begun; refuse if it was for something else."""
    path = folder / PLAN_FILE
    begun = read_json(path)
    if begun is None:
        return CachePlan.make(codec, entries, shard_bytes)
    if not isinstance(begun.get("identity"), dict) or not isinstance(
        begun.get("shard_bytes"), int
    ):
        raise DataError(f"{path} is no plan of a feature cache: remove it")
    plan = CachePlan.make(codec, entries, begun["shard_bytes"])
    plan.identity.check(begun["identity"], path)
    return plan


def _look(folder: Path, plan: CachePlan) -> list[int] | None:
    """Numbers of the shards to make; None when the cache is complete."""
    try:
        if FeatureCache(folder).identity == asdict(plan.identity):
            return None
    except DataError:
        pass  # incomplete: its shards are checked below
    identity: CacheIdentity = plan.identity
    missing = []
    for i, frames in enumerate(plan.shards):
        path = plan.path(folder, i)
        if not is_whole(path, frames, identity.dim, identity.tag):
            missing.append(i)
            if path.exists():
                logger.warning("%s is damaged and is made again", path)
    return missing


def _check_space(folder: Path, plan: CachePlan, missing: Sequence[int]) -> None:
    """Tell the size; refuse when it does not fit."""
    identity = plan.identity
    needed = plan.num_bytes(missing)
    disk = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(disk).free
    size = (
        f"{plan.num_bytes() / GB:.3f} GB ({identity.num_utterances:,} "
        f"utterances, {identity.num_frames:,} frames x {identity.dim} "
        "channels x 2 bytes)"
    )
    if if_main_process():
        logger.info(
            "Feature cache %s: %s; %d of %d shards are to be made, %.3f GB; "
            "%.3f GB are free",
            folder,
            size,
            len(missing),
            len(plan.shards),
            needed / GB,
            free / GB,
        )
    if needed > free:
        raise DataError(
            f"the feature cache {folder} takes {size}, of which "
            f"{needed / GB:.3f} GB are missing, but {disk} has "
            f"{free / GB:.3f} GB free: give feature_cache a folder on a "
            "larger disk, or train without it (feature_cache: null)"
        )


def _start(folder: Path, plan: CachePlan, shard_bytes: int) -> None:
    """Mark the folder as a cache that is incomplete."""
    (folder / INDEX_FILE).unlink(missing_ok=True)
    path = folder / PLAN_FILE
    if not path.exists():
        content = {
            "identity": asdict(plan.identity),
            "shard_bytes": shard_bytes,
        }
        atomic_write_text(path, json.dumps(content, indent=1) + "\n")


class _Utterances(Dataset):
    """Waveforms by utterance id."""

    def __init__(
        self, entries: Mapping[str, Mapping[str, Any]], sample_rate: int
    ) -> None:
        self.entries = entries
        self.reader = SignalReader(sample_rate)

    def __getitem__(self, utt_id: str) -> torch.Tensor:
        entry = self.entries[utt_id]
        return self.reader(
            utt_id, entry["wav"], entry["num_samples"], entry["sample_rate"]
        )


def _pad(sigs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(sig) for sig in sigs])
    return pad_sequence(sigs, batch_first=True), lengths


def _make_shards(
    folder: Path,
    plan: CachePlan,
    numbers: Iterable[int],
    codec: FocalCodec,
    entries: Mapping[str, Mapping[str, Any]],
    num_workers: int,
    batch_samples: int,
) -> None:
    """Make some shards, in order."""
    rate = plan.identity.sample_rate
    batches: list[tuple[int, list[str]]] = []
    for number in numbers:
        names = list(plan.shards[number])
        lengths = [
            resampled_length(
                entries[name]["num_samples"], entries[name]["sample_rate"], rate
            )
            for name in names
        ]
        batches += [
            (number, [names[i] for i in places])
            for places in plan_batches(lengths, batch_samples)
        ]
    loader = DataLoader(
        _Utterances(entries, rate),
        batch_sampler=[names for _, names in batches],
        collate_fn=_pad,
        num_workers=num_workers,
    )
    device = next(codec.parameters()).device
    feats: dict[str, torch.Tensor] = {}
    progress = tqdm(
        zip(batches, loader, strict=True),
        total=len(batches),
        desc="feature cache",
        unit="batch",
        disable=not if_main_process(),
    )
    for (number, names), (sig, lengths) in progress:
        feats |= _encode(codec, names, sig.to(device), lengths.to(device))
        if len(feats) == len(plan.shards[number]):
            path = plan.path(folder, number)
            write_shard(path, feats, plan.identity.tag)
            feats = {}


@torch.no_grad()
def _encode(
    codec: FocalCodec,
    names: Sequence[str],
    sig: torch.Tensor,
    lengths: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Features of a batch, by utterance id, on the CPU."""
    feats, frames = codec.sig_to_feats(sig, lengths)
    # Rounded first: half as much to move, and to hold.
    feats = feats.bfloat16().cpu()
    made = {}
    for name, x, num in zip(names, feats, frames.tolist(), strict=True):
        made[name] = x[:num].clone()
        if not made[name].isfinite().all():
            raise DataError(
                f"the encoder gives features of {name} that are not finite; "
                "leave the utterance out, or look at the encoder's weights"
            )
    return made


def _finish(folder: Path, plan: CachePlan) -> None:
    """Write the index, which completes the cache."""
    shards = []
    for i, frames in enumerate(plan.shards):
        path = plan.path(folder, i)
        size = path.stat().st_size
        shards.append({"file": path.name, "bytes": size, "frames": frames})
    content = {"identity": asdict(plan.identity), "shards": shards}
    text = json.dumps(content, ensure_ascii=False) + "\n"
    atomic_write_text(folder / INDEX_FILE, text)
