"""How many streams at once one model codes in real time."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from systems import Missing, make_noise

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.streaming.latency import ChunkTimes, Spread

# From a codec and a size to a pool: `join() -> slot`, `push({slot: sig}) ->
# {slot: out}`, `leave(slot)`.
MakePool = Callable[[FocalCodec, int], Any]

# The search ends when the answer is known to a twentieth.
PRECISION = 20


@dataclass
class StreamsResult:
    """Steps of more and more streams.

    Arguments
    ---------
    model, option : str
        What was measured.
    threads : int
        Of the CPU.
    chunk_ms : float
        What a step must not take longer than.
    skipped : str, optional
        Why there are no numbers.
    p95_ms : dict
        Of a step, by the number of streams.
    """

    model: str
    option: str
    threads: int
    chunk_ms: float
    skipped: str | None = None
    p95_ms: dict[int, float] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """The most streams measured whose steps end in time."""
        return max(
            (n for n, p95 in self.p95_ms.items() if p95 < self.chunk_ms),
            default=0,
        )


def find_pool() -> MakePool:
    """Import what batches streams.

    Returns
    -------
    callable
        ``StreamPool``.

    Raises
    ------
    Missing
        If this version has none.
    """
    try:
        module = importlib.import_module(
            "speechbrain_focalcodec.streaming.pool"
        )
    except ImportError as error:
        raise Missing(str(error)) from error
    return module.StreamPool


def time_steps(
    make_pool: MakePool,
    codec: FocalCodec,
    streams: int,
    warm: int,
    steps: int,
) -> Spread:
    """Time steps of some streams, each of which gives a chunk.

    Arguments
    ---------
    make_pool : callable
        See `find_pool`.
    codec : FocalCodec
        A causal model.
    streams : int
        How many.
    warm : int
        Steps that do not count: until the windows are full.
    steps : int
        Steps that count.

    Returns
    -------
    Spread
        In milliseconds.
    """
    chunk_length = codec.chunk_length or 0
    rate = codec.sample_rate_input
    device = next(codec.parameters()).device
    sigs = make_noise(chunk_length / rate, streams, rate, device)
    pool = make_pool(codec, streams)
    slots = [pool.join() for _ in range(streams)]
    chunks = dict(zip(slots, sigs, strict=True))
    times = ChunkTimes(chunk_length / rate)
    for _ in range(warm + steps):
        with times.chunk():
            out = pool.push(chunks)
            torch.cat([sig.cpu() for sig in out.values()])
    for slot in slots:
        pool.leave(slot)
    spread = Spread.of(times.seconds[warm:], 1000)
    assert spread is not None
    return spread


def search_streams(
    result: StreamsResult, measure: Callable[[int], float], limit: int
) -> None:
    """Find the most streams whose steps end in time.

    Doubles the number until they do not, then halves the gap.

    Arguments
    ---------
    result : StreamsResult
        Is filled in.
    measure : callable
        Gives the 95th percentile of a step (ms) of so many streams.
    limit : int
        The most to try.
    """

    def ends_in_time(streams: int) -> bool:
        result.p95_ms[streams] = measure(streams)
        return result.p95_ms[streams] < result.chunk_ms

    good, bad = 0, 1
    while ends_in_time(bad):
        good = bad
        if good == limit:
            return
        bad = min(2 * good, limit)
    while bad - good > max(1, good // PRECISION):
        middle = (good + bad) // 2
        if ends_in_time(middle):
            good = middle
        else:
            bad = middle
