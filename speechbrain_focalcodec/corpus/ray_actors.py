"""Ray's actors: what holds the model, and who hands them shards."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from speechbrain_focalcodec.corpus.items import ItemTable
from speechbrain_focalcodec.corpus.layout import ModelInfo
from speechbrain_focalcodec.corpus.maker import ShardMaker
from speechbrain_focalcodec.corpus.plan import Plan, load_plan
from speechbrain_focalcodec.corpus.run import (
    Tally,
    default_batch,
    default_workers,
    num_items,
    settings_of,
)
from speechbrain_focalcodec.corpus.shards import Failure, ShardFacts
from speechbrain_focalcodec.errors import DataError, FocalCodecError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.jobs.group import Alone

__all__ = ["Crew", "Load", "News", "ShardWorker"]

# A shard whose worker is lost so often is not tried again.
MAX_LOSSES = 3
_LOOK = 1.0  # seconds that a worker waits for news

Load = Callable[[str | None], PretrainedFocalCodec]

logger = logging.getLogger(__name__)


@dataclass
class News:
    """What a worker has done since it was asked before.

    Arguments
    ---------
    ready : bool
        Whether its model is loaded.
    items : int
        Items done.
    seconds : float
        Seconds of audio encoded.
    failures : list
        Items that failed.
    made : list of ShardFacts
        Shards published.
    error : str, optional
        Why it has ended.
    is_fatal : bool
        Whether others would end by the same.

    Example
    -------
    >>> News().made
    []
    """

    ready: bool = False
    items: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    made: list[ShardFacts] = field(default_factory=list)
    error: str | None = None
    is_fatal: bool = False


class ShardWorker:
    """Makes the shards that it is given; what an actor runs.

    The model works in a thread of its own, so that news can be had.

    Arguments
    ---------
    load : callable
        Loads the model onto a device; None for the best one.
    device : str, optional
        The device.
    out : str
        The dataset's folder.
    digest : str
        The plan's.
    batch_duration : float, optional
        Seconds of audio encoded together.
    workers : int, optional
        Processes that read audio.

    Example
    -------
    >>> worker = ShardWorker(None, None, "nowhere", "0" * 64, None, None)
    >>> while not (news := worker.step([])).error:
    ...     pass
    >>> news.error, news.is_fatal
    ('nowhere/work/plan.json: cannot be read ...', True)
    """

    def __init__(
        self,
        load: Load,
        device: str | None,
        out: str,
        digest: str,
        batch_duration: float | None,
        workers: int | None,
    ) -> None:
        self._arguments = (load, device, out, digest, batch_duration, workers)
        self._todo = queue.SimpleQueue[int]()
        self._news, self._changed = News(), threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def step(self, shards: list[int]) -> News:
        """Take more shards, and tell what is done.

        Arguments
        ---------
        shards : list of int
            To be made after those that were given before.

        Returns
        -------
        News
            Nothing new after a second.
        """
        for shard in shards:
            self._todo.put(shard)
        with self._changed:
            self._changed.wait_for(lambda: self._news != News(), _LOOK)
            news, self._news = self._news, News()
        return news

    def _work(self) -> None:
        try:
            self._make(*self._arguments)
        except Exception as error:
            # Bad input is the same everywhere; a broken GPU is not.
            fatal = isinstance(error, FocalCodecError | ImportError)
            text = str(error) if fatal else f"{type(error).__name__}: {error}"
            with self._telling() as news:
                news.error, news.is_fatal = text, fatal

    def _make(
        self,
        load: Load,
        device: str | None,
        out: str,
        digest: str,
        batch_duration: float | None,
        workers: int | None,
    ) -> None:
        plan, items = load_plan(out)
        interface = load(device)
        same = (ModelInfo.of(interface.codec), settings_of(interface)) == (
            plan.model,
            plan.settings,
        )
        if plan.digest() != digest or not same:
            raise DataError(
                f"{out}: has another plan, or a worker another model, than "
                "the process that leads; are files the same on all machines?"
            )
        if batch_duration is None:
            batch_duration = default_batch(interface.device)
        if workers is None:
            workers = default_workers(interface.device)
        with ShardMaker(
            interface, plan, items, out, batch_duration, workers, self._count
        ) as maker:
            with self._telling() as news:
                news.ready = True
            while True:
                for facts in maker.make(self._given(self._todo.get())):
                    with self._telling() as news:
                        news.made.append(facts)

    def _given(self, first: int) -> Iterator[int]:
        """Give what there is; waiting would hold up what is under way."""
        yield first
        with suppress(queue.Empty):
            while True:
                yield self._todo.get_nowait()

    def _count(
        self, items: int, seconds: float, failures: list[Failure]
    ) -> None:
        with self._telling() as news:
            news.items += items
            news.seconds += seconds
            news.failures += failures

    @contextmanager
    def _telling(self) -> Iterator[News]:
        with self._changed:
            yield self._news
            self._changed.notify()


@dataclass
class _Member:
    """An actor as its driver sees it."""

    actor: Any
    ready: bool = False
    hand: list[int] = field(default_factory=list)  # being made, in order
    # What it has told beyond the shards that it published.
    items: int = 0
    seconds: float = 0.0
    failures: int = 0


class Crew:
    """Hands shards to actors until all are made.

    Arguments
    ---------
    ray : module
        Ray.
    start : callable
        Starts an actor.
    size : int
        How many there are to be.
    plan : Plan
        The plan.
    items : ItemTable
        Its items, for messages.
    tally : callable
        Told of progress.
    group : Alone
        The numbers behind the tally.
    """

    def __init__(
        self,
        ray: Any,
        start: Callable[[], Any],
        size: int,
        plan: Plan,
        items: ItemTable,
        tally: Tally,
        group: Alone,
    ) -> None:
        self._ray, self._start, self._size = ray, start, size
        self._plan, self._items = plan, items
        self._tally, self._group = tally, group
        self._actors: list[Any] = []
        self._members: dict[Any, _Member] = {}  # by what is awaited of them
        self._losses: dict[int, int] = {}
        self._false_starts = 0

    def make(self, shards: list[int]) -> None:
        """Have shards made; a DataError when that cannot be."""
        self._queue = deque(shards)
        left = set(shards)
        since = time.monotonic()
        # A worker more than there are shards has nothing to do.
        for _ in range(min(self._size, len(shards))):
            self._add()
        while left:
            done, _ = self._ray.wait(list(self._members), timeout=10.0)
            for ref in done:
                member = self._members.pop(ref)
                try:
                    news = self._ray.get(ref)
                except self._ray.exceptions.RayActorError as error:
                    self._replace(member, _reason(error))
                    continue
                left.difference_update(facts.shard for facts in news.made)
                self._hear(member, news)
            if not done and time.monotonic() - since > 60:
                logger.warning(
                    "no worker has started yet; has the Ray cluster free CPUs "
                    "and GPUs (`ray status`)?"
                )
                since = time.monotonic()

    def end(self) -> None:
        """End all actors."""
        for actor in list(self._actors):
            self._kill(actor)

    def _add(self) -> None:
        member = _Member(self._start())
        self._actors.append(member.actor)
        self._members[member.actor.step.remote([])] = member

    def _hear(self, member: _Member, news: News) -> None:
        """Count what a member has done, and give it more to do."""
        for facts in news.made:
            member.hand.remove(facts.shard)
            member.items -= num_items(facts)
            member.seconds -= facts.duration
            member.failures -= len(facts.failures)
        member.items += news.items
        member.seconds += news.seconds
        member.failures += len(news.failures)
        if news.items or news.failures:
            self._tally(news.items, news.seconds, news.failures)
        if news.error is not None and news.is_fatal:
            raise DataError(f"a worker gave up: {news.error}")
        if news.error is not None:
            self._replace(member, news.error)
            return
        if news.ready:
            member.ready, self._false_starts = True, 0
        given: list[int] = []
        # Two ahead, so that reading goes on while a shard is published; near
        # the end none, so that nobody is left with several.
        most = 1 if len(self._queue) <= 2 * len(self._members) else 3
        while member.ready and self._queue and len(member.hand) < most:
            # What has ended a worker is made alone, so that it is known.
            near = {self._queue[0], *member.hand}
            if member.hand and near & self._losses.keys():
                break
            given.append(self._queue.popleft())
            member.hand.append(given[-1])
        self._members[member.actor.step.remote(given)] = member

    def _replace(self, member: _Member, reason: str) -> None:
        """Have another one do what a lost member has left."""
        self._kill(member.actor)
        self._group.add("items", -member.items)
        self._group.add("ms", -round(1000 * member.seconds))
        self._group.add("failures", -member.failures)
        logger.info("a worker was lost: %s", reason)
        if member.hand:
            shard = member.hand[0]
            self._losses[shard] = self._losses.get(shard, 0) + 1
            if self._losses[shard] >= MAX_LOSSES:
                ids = self._items.shard(shard)["id"]
                raise DataError(
                    f"shard {shard} (items {ids[0]} to {ids[-1]}) has ended "
                    f"its worker {MAX_LOSSES} times; the last time: {reason}"
                )
        else:
            self._false_starts += 1
            if self._false_starts >= MAX_LOSSES * self._size:
                raise DataError(f"no worker can start: {reason}")
        self._queue.extendleft(reversed(member.hand))
        self._add()

    def _kill(self, actor: Any) -> None:
        self._actors.remove(actor)
        with suppress(Exception):  # it may be dead, or its cluster
            self._ray.kill(actor)


def _reason(error: Exception) -> str:
    """What Ray says first, and the cause that it may end with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else ""
