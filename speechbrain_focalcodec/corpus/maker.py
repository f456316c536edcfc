"""Making shards: audio read ahead, encoded in batches, written by rename."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
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
    read_facts,
    shard_schema,
    write_shard,
)
from speechbrain_focalcodec.errors import AudioError, DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs.audio import (
    AudioJob,
    Header,
    read_sig,
)
from speechbrain_focalcodec.jobs.batching import plan_batches
from speechbrain_focalcodec.jobs.loading import Loader, Pending, read_ahead

__all__ = ["Progress", "ShardMaker"]

# Told of each batch: items, seconds of audio, failures among the items.
Progress = Callable[[int, float, list[Failure]], None]

_SEGMENTS = ("start", "stop")


@dataclass
class _Shard:
    """A shard that is being made."""

    index: int
    items: pa.Table
    jobs: list[AudioJob]
    pending: Pending
    headers: dict[int, Header] = field(default_factory=dict)
    toks: dict[int, np.ndarray] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


@dataclass
class _Batch:
    """Some items of a shard that are encoded together."""

    shard: _Shard
    places: list[int]
    sigs: Pending | None  # None: too long to be read as a whole
    is_last: bool


class ShardMaker:
    """Makes shards of a plan with one model.

    A context manager, which ends the processes that read audio.

    Arguments
    ---------
    interface : PretrainedFocalCodec
        The model; its window says what is encoded in one pass.
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
        Told of each batch: items, seconds of audio and failures. What it
        raises ends the work; the shard under way is not written then.

    Example
    -------
    >>> from speechbrain_focalcodec.corpus.plan import load_plan
    >>> with ShardMaker(interface, *load_plan("out"), "out", 60.0, 2) as maker:
    ...     facts = list(maker.make([0, 1]))
    Traceback (most recent call last):
    ...
    NameError: name 'interface' is not defined
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
        self._rate = interface.codec.sample_rate_input
        self._most = round(batch_duration * self._rate)
        self._digest = plan.digest()
        segments = _SEGMENTS if items.has_segments else ()
        extra = [
            *(items.schema.field(s) for s in segments),
            *items.extra_schema,
        ]
        self._schema = shard_schema(plan.model.codebook_size, pa.schema(extra))
        self._loader = Loader(self._rate, workers)
        self._depth = workers + 2

    def make(
        self,
        indices: Iterable[int],
        is_near_end: Callable[[], bool] = lambda: False,
    ) -> Iterator[ShardFacts]:
        """Make shards, one after the other; audio is read across their ends.

        Arguments
        ---------
        indices : iterable of int
            Which shards; the next one is asked for ahead of time.
        is_near_end : callable
            Whether others could take the next one instead.

        Returns
        -------
        iterator of ShardFacts
            What was published.

        Raises
        ------
        FocalCodecError
            If a shard cannot be written, or what `progress` raises.
        """
        for batch in read_ahead(
            self._batches(indices, is_near_end), self._depth
        ):
            self._encode(batch)
            if batch.is_last:
                yield self._publish(batch.shard)

    def _batches(
        self, indices: Iterable[int], is_near_end: Callable[[], bool]
    ) -> Iterator[_Batch]:
        opened = (self._open(i) for i in indices)
        for shard in read_ahead(opened, lambda: 0 if is_near_end() else 1):
            found = dict(enumerate(shard.pending.result()))
            bad = {i: h for i, h in found.items() if isinstance(h, str)}
            self._fail(shard, bad)
            shard.headers = {i: h for i, h in found.items() if i not in bad}
            lengths = {
                i: resampled_length(*header[:2], self._rate)
                for i, header in shard.headers.items()
            }
            places = list(lengths)
            groups = [
                [places[k] for k in group]
                for group in plan_batches(list(lengths.values()), self._most)
            ]
            # An empty one, so that a shard of failures is published too.
            groups = groups or [[]]
            window = self.interface.window
            longest = np.inf if window is None else window * self._rate
            for number, group in enumerate(groups, 1):
                sigs = None
                if not any(lengths[i] > longest for i in group):
                    sigs = self._loader.sigs([shard.jobs[i] for i in group])
                yield _Batch(shard, group, sigs, number == len(groups))

    def _open(self, index: int) -> _Shard:
        """Have a shard's headers read."""
        items = self.items.shard(index)
        jobs = [
            AudioJob(
                *(str(self.items.open_path(path)), start, stop),
                *(self.interface.channel, self.interface.strict),
            )
            for path, start, stop in zip(
                *(items[name].to_pylist() for name in ("path", *_SEGMENTS)),
                strict=True,
            )
        ]
        return _Shard(index, items, jobs, self._loader.headers(jobs))

    def _encode(self, batch: _Batch) -> None:
        """Encode what could be read; the rest are failures."""
        shard = batch.shard
        if batch.sigs is None:
            for place in batch.places:
                self._encode_long(shard, place)
        else:
            sigs = dict(zip(batch.places, batch.sigs.result(), strict=True))
            bad = {
                i: reason
                for i, sig in sigs.items()
                if (reason := self._problem(shard, i, sig))
            }
            self._fail(shard, bad)
            good = {
                i: torch.from_numpy(sig)
                for i, sig in sigs.items()
                if i not in bad
            }
            self._encode_together(shard, good)
        done = [i for i in batch.places if i in shard.toks]
        seconds = sum(
            shard.headers[i].num_samples / shard.headers[i].sample_rate
            for i in done
        )
        self.progress(len(done), seconds, [])

    def _problem(self, shard: _Shard, place: int, sig: Any) -> str:
        """What is wrong with what was read; empty when all is well."""
        if isinstance(sig, str):
            return sig
        header = shard.headers[place]
        if len(sig) == resampled_length(*header[:2], self._rate):
            return ""
        return (
            f"{shard.jobs[place].path}: has another length than when its "
            "header was read; let nobody write it during the run"
        )

    def _encode_together(
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
                seconds = len(sigs[place]) / self._rate
                raise DataError(
                    f"{shard.jobs[place].path}: memory does not hold the "
                    f"{seconds:.1f} s that are encoded in one pass; choose a "
                    "device with more, or a smaller --window and another "
                    "output folder"
                ) from error
        else:
            shard.toks.update(zip(sigs, rows, strict=True))
            return
        # Only here: the exception held on to what filled the memory.
        torch.cuda.empty_cache()
        places = list(sigs)
        half = len(places) // 2
        for part in (places[:half], places[half:]):
            self._encode_together(shard, {i: sigs[i] for i in part})

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
        """Encode window by window, read from disk as it goes."""
        job = shard.jobs[place]
        try:
            if job.start is None and job.stop is None:
                toks = self.interface.encode_file(job.path)
            else:
                sig = read_sig(job, self._rate)
                if isinstance(sig, str):
                    raise AudioError(sig)
                batch, _ = self.interface.encode_batch(
                    torch.from_numpy(sig[None])
                )
                toks = batch[0]
        except (AudioError, OSError) as error:
            self._fail(shard, {place: str(error)})
        else:
            shard.toks[place] = toks.cpu().numpy()

    def _fail(self, shard: _Shard, reasons: dict[int, str]) -> None:
        shard.reasons.update(reasons)
        if reasons:
            self.progress(len(reasons), 0.0, self._failures(shard, reasons))

    def _failures(self, shard: _Shard, places: Iterable[int]) -> list[Failure]:
        places = sorted(places)
        rows = shard.items.select(["id", "path"]).take(
            pa.array(places, pa.int64())
        )
        reasons = (" ".join(shard.reasons[i].split()) for i in places)
        return list(zip(*rows.to_pydict().values(), reasons, strict=True))

    def _publish(self, shard: _Shard) -> ShardFacts:
        """Write a shard whose items are all done."""
        kept = sorted(shard.toks)
        columns: Any = shard.items.take(pa.array(kept, pa.int64()))
        path = self.out / shard_name(shard.index, self.plan.shards)
        try:
            return write_shard(
                path,
                self._schema,
                columns,
                [shard.toks[i] for i in kept],
                [shard.headers[i][:2] for i in kept],
                {
                    "plan": self._digest,
                    "shard": shard.index,
                    "failures": self._failures(shard, shard.reasons),
                    "sizes": [shard.headers[i].num_bytes for i in kept],
                },
            )
        except FileNotFoundError:
            # Taken for lost: another process made it, and has cleaned up.
            facts = read_facts(path, self._digest, shard.index)
            if facts is None:
                raise
            return facts

    def __enter__(self) -> "ShardMaker":
        self._loader.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loader.__exit__(kind, error, trace)
