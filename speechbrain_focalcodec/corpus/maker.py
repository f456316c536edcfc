"""Makes shards: audio is read ahead, encoded in batches, saved by rename."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.audio.resampling import resampled_length
from speechbrain_focalcodec.corpus.items import ItemTable
from speechbrain_focalcodec.corpus.layout import shard_name
from speechbrain_focalcodec.corpus.plan import Plan
from speechbrain_focalcodec.corpus.shards import (
    Failure,
    ShardFacts,
    shard_schema,
    write_shard,
)
from speechbrain_focalcodec.errors import AudioError, DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs.audio import AudioJob, Header, read_sig
from speechbrain_focalcodec.jobs.batching import plan_batches
from speechbrain_focalcodec.jobs.engine import Batch, process_shards
from speechbrain_focalcodec.jobs.loading import Loader, Pending

__all__ = ["Progress", "ShardMaker"]

# Called after each batch: items, seconds of audio, failures among the items.
Progress = Callable[[int, float, list[Failure]], None]

_SEGMENTS = ("start", "stop")


class _Shard:
    """A shard that is being made."""

    def __init__(self, maker: "ShardMaker", index: int) -> None:
        self._maker, self.index = maker, index
        self.items = maker.items.shard(index)
        interface = maker.interface
        self.jobs = [
            AudioJob(
                *(str(maker.items.open_path(path)), start, stop),
                *(interface.channel, interface.strict),
            )
            for path, start, stop in zip(
                *(
                    self.items[name].to_pylist()
                    for name in ("path", *_SEGMENTS)
                ),
                strict=True,
            )
        ]
        self.toks: dict[int, np.ndarray] = {}
        self.reasons: dict[int, str] = {}
        self._pending = maker.loader.headers(self.jobs)

    @cached_property
    def headers(self) -> dict[int, Header]:
        """Headers of readable items; the others fail."""
        found = dict(enumerate(self._pending.result()))
        bad = {i: h for i, h in found.items() if isinstance(h, str)}
        self._maker.fail(self, bad)
        return {i: h for i, h in found.items() if i not in bad}

    def length(self, place: int) -> int:
        """Samples of an item at the model's sample rate."""
        samples, rate, _ = self.headers[place]
        return resampled_length(samples, rate, self._maker.sample_rate)

    def batches(self) -> list[list[int]]:
        """Places of items of similar length."""
        places = list(self.headers)
        groups = plan_batches(
            [self.length(i) for i in places], self._maker.batch_samples
        )
        return [[places[k] for k in group] for group in groups]

    def read(self, loader: Loader, places: list[int]) -> Pending | None:
        """Read audio, except of files that are longer than a window."""
        window = self._maker.interface.window
        if window is not None:
            longest = window * self._maker.sample_rate
            if any(self.length(i) > longest for i in places):
                return None
        return loader.sigs([self.jobs[i] for i in places])

    def failures(self, places: Iterable[int]) -> list[Failure]:
        """Id, path and reason of items that have failed."""
        places = sorted(places)
        rows = self.items.select(["id", "path"]).take(
            pa.array(places, pa.int64())
        )
        reasons = (" ".join(self.reasons[i].split()) for i in places)
        return list(zip(*rows.to_pydict().values(), reasons, strict=True))


class ShardMaker:
    """Makes shards of a plan with one model.

    A context manager that ends the processes that read audio.

    Arguments
    ---------
    interface : PretrainedFocalCodec
        The model; longer audio than its window is encoded in windows.
    plan : Plan
        The plan.
    items : ItemTable
        Its items.
    out : str or Path
        The dataset's folder.
    batch_duration : float
        Seconds of audio of a batch, padding included.
    workers : int
        Processes that read audio; 0 for a thread.
    progress : callable
        Called after each batch with items, seconds of audio and failures. An
        exception of it ends the work; the current shard is not written then.
    """

    def __init__(
        self,
        interface: PretrainedFocalCodec,
        plan: Plan,
        items: ItemTable,
        out: str | Path,
        batch_duration: float,
        workers: int,
        progress: Progress = lambda items, seconds, failures: None,
    ) -> None:
        self.interface, self.plan, self.items = interface, plan, items
        self.out, self.progress = Path(out), progress
        self.sample_rate = interface.codec.sample_rate_input
        self.batch_samples = round(batch_duration * self.sample_rate)
        self._digest = plan.digest()
        segments = _SEGMENTS if items.has_segments else ()
        extra = [
            *(items.schema.field(s) for s in segments),
            *items.extra_schema,
        ]
        self._schema = shard_schema(plan.model.codebook_size, pa.schema(extra))
        self.loader = Loader(self.sample_rate, workers)

    def make(self, indices: Iterable[int]) -> Iterator[ShardFacts]:
        """Make shards in order; audio of the next shard is read ahead.

        Arguments
        ---------
        indices : iterable of int
            Numbers of the shards.

        Returns
        -------
        iterator of ShardFacts
            Each shard's facts once it is published.

        Raises
        ------
        FocalCodecError
            If a shard cannot be written, or `progress` raises it.
        """
        shards = (_Shard(self, index) for index in indices)
        for shard in process_shards(shards, self.loader, self._encode):
            yield self._publish(shard)

    def fail(self, shard: _Shard, reasons: dict[int, str]) -> None:
        """Record items that have failed."""
        shard.reasons.update(reasons)
        if reasons:
            self.progress(len(reasons), 0.0, shard.failures(reasons))

    def _encode(self, batch: Batch[_Shard]) -> None:
        """Encode the items that could be read; the others fail."""
        shard = batch.shard
        if batch.audio is None:
            for place in batch.places:
                self._encode_long(shard, place)
        else:
            sigs = dict(zip(batch.places, batch.audio, strict=True))
            bad = {
                i: reason
                for i, sig in sigs.items()
                if (reason := self._check(shard, i, sig))
            }
            self.fail(shard, bad)
            good = {
                i: torch.from_numpy(sig)
                for i, sig in sigs.items()
                if i not in bad
            }
            self._encode_batch(shard, good)
        done = [i for i in batch.places if i in shard.toks]
        seconds = sum(
            shard.headers[i].num_samples / shard.headers[i].sample_rate
            for i in done
        )
        self.progress(len(done), seconds, [])

    def _check(self, shard: _Shard, place: int, sig: Any) -> str:
        """The problem of an item that was read; empty if there is none."""
        if isinstance(sig, str):
            return sig
        if len(sig) == shard.length(place):
            return ""
        return (
            f"{shard.jobs[place].path}: has another length than when its "
            "header was read; let nobody write it during the run"
        )

    def _encode_batch(
        self, shard: _Shard, sigs: dict[int, torch.Tensor]
    ) -> None:
        """Encode a batch, or its halves when memory does not hold it."""
        if not sigs:
            return
        try:
            rows = self._encode_sigs(list(sigs.values()))
        except torch.OutOfMemoryError as error:
            if len(sigs) == 1:
                (place,) = sigs
                seconds = len(sigs[place]) / self.sample_rate
                raise DataError(
                    f"{shard.jobs[place].path}: memory does not hold the "
                    f"{seconds:.1f} s that are encoded in one pass; choose a "
                    "device with more, or a smaller --window and another "
                    "output folder"
                ) from error
        else:
            shard.toks.update(zip(sigs, rows, strict=True))
            return
        # Only here: the exception held references to the batch.
        torch.cuda.empty_cache()
        places = list(sigs)
        half = len(places) // 2
        for part in (places[:half], places[half:]):
            self._encode_batch(shard, {i: sigs[i] for i in part})

    def _encode_sigs(self, sigs: list[torch.Tensor]) -> list[np.ndarray]:
        device = self.interface.device
        with torch.no_grad(), self.interface.inference_ctx:
            toks, lengths = self.interface.codec.encode(
                pad_sequence(sigs, True).to(device),
                torch.tensor([*map(len, sigs)], device=device),
                window=None,
            )
        return [
            row[:length].copy()
            for row, length in zip(
                toks.cpu().numpy(), lengths.tolist(), strict=True
            )
        ]

    def _encode_long(self, shard: _Shard, place: int) -> None:
        """Encode an item window by window."""
        job = shard.jobs[place]
        try:
            if job.start is None and job.stop is None:
                toks = self.interface.encode_file(job.path)
            else:
                sig = read_sig(job, self.sample_rate)
                if isinstance(sig, str):
                    raise AudioError(sig)
                batch, _ = self.interface.encode_batch(
                    torch.from_numpy(sig[None])
                )
                toks = batch[0]
        except (AudioError, OSError) as error:
            self.fail(shard, {place: str(error)})
        else:
            shard.toks[place] = toks.cpu().numpy()

    def _publish(self, shard: _Shard) -> ShardFacts:
        """Write a shard whose items are all done."""
        kept = sorted(shard.toks)
        columns: Any = shard.items.take(pa.array(kept, pa.int64()))
        return write_shard(
            self.out / shard_name(shard.index, self.plan.shards),
            self._schema,
            columns,
            [shard.toks[i] for i in kept],
            [shard.headers[i][:2] for i in kept],
            {
                "plan": self._digest,
                "shard": shard.index,
                "failures": shard.failures(shard.reasons),
                "sizes": [shard.headers[i].num_bytes for i in kept],
            },
        )

    def __enter__(self) -> "ShardMaker":
        self.loader.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.loader.__exit__(kind, error, trace)
