"""Processing times of the chunks of a stream, and the latency they cause.

Does not import torch.
"""

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ChunkTimes", "LatencyReport", "Spread"]


@dataclass(frozen=True)
class Spread:
    """Percentiles of times.

    A percentile is the smallest measured time that at least this share of all
    times does not exceed.

    Arguments
    ---------
    p50, p95, p99, max : float
        In the unit of the times.

    Example
    -------
    >>> Spread.of(range(1, 201))
    Spread(p50=100, p95=190, p99=198, max=200)
    >>> Spread.of([]) is None
    True
    """

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, times: Iterable[float], scale: float = 1) -> "Spread | None":
        """Sort times into percentiles.

        Arguments
        ---------
        times : iterable of float
            In any order.
        scale : float
            Each is multiplied by it.

        Returns
        -------
        Spread, optional
            None when there are no times.
        """
        ordered = sorted(times)
        if not ordered:
            return None

        def percentile(percent: int) -> float:
            rank = -(-percent * len(ordered) // 100)
            return scale * ordered[rank - 1]

        return cls(
            percentile(50), percentile(95), percentile(99), percentile(100)
        )


@dataclass(frozen=True)
class LatencyReport:
    """Processing times and latency of a stream.

    Arguments
    ---------
    chunk_ms : float
        Duration of a chunk, which must be heard before it is coded: the
        algorithmic latency.
    chunks : int
        Number of whole chunks.
    audio_s : float
        Length of all audio, with the last, incomplete chunk (s).
    first_ms : float, optional
        Time of the first chunk, which creates the state.
    processing_ms : Spread, optional
        Time of each other chunk.
    tail_ms : float, optional
        Time of the last, incomplete chunk.
    real_time_factor : float, optional
        Steady state: time of all chunks but the first over their duration.
    end_to_end_real_time_factor : float, optional
        Time of everything, reading and writing included, over `audio_s`.
    overruns : int
        Number of chunks that took longer than their duration.
    delay_ms : Spread, optional
        Live: time from the end of a chunk's recording to its result; without
        the first chunk.
    late : int, optional
        Live: number of results after the next chunk was complete.
    other_latency_ms : float
        Latency of resampling and of the sound device.
    heard_latency_ms : float, optional
        Latency that 99 % of chunks do not exceed: `chunk_ms` plus p99 of the
        delay (of the processing, if not live) plus `other_latency_ms`.
    counts : dict
        Counters of the sound devices by name; empty without them.

    Example
    -------
    >>> times = ChunkTimes(0.08)
    >>> times.add(0.02)
    >>> times.add(0.01)
    >>> times.report(audio_s=0.16).heard_latency_ms
    90.0
    """

    chunk_ms: float
    chunks: int
    audio_s: float
    first_ms: float | None
    processing_ms: Spread | None
    tail_ms: float | None
    real_time_factor: float | None
    end_to_end_real_time_factor: float | None
    overruns: int
    delay_ms: Spread | None
    late: int | None
    other_latency_ms: float
    heard_latency_ms: float | None
    counts: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as JSON can hold it.

        Returns
        -------
        dict
            By name.
        """
        return asdict(self)

    def rows(self) -> dict[str, str]:
        """Write it for people.

        Returns
        -------
        dict
            Lines by their title.
        """
        rows = {
            "Chunks": f"{self.chunks} of {self.chunk_ms:g} ms "
            f"({self.audio_s:.2f} s of audio)",
            "First chunk": _ms(self.first_ms),
            "Each chunk": _spread(self.processing_ms),
            "Last part": _ms(self.tail_ms),
            "Real time": f"factor {_factor(self.real_time_factor)} in steady "
            f"state, {_factor(self.end_to_end_real_time_factor)} end to end",
            "Overruns": f"{self.overruns} chunks took longer than "
            f"{self.chunk_ms:g} ms",
        }
        if self.late is not None:
            rows["Delay"] = _spread(self.delay_ms)
            rows["Late"] = (
                f"{self.late} results came after the next chunk was complete"
            )
        if self.heard_latency_ms is not None:
            code = self.heard_latency_ms - self.chunk_ms - self.other_latency_ms
            other = (
                f" + device and resampling {self.other_latency_ms:.1f} ms"
                if self.other_latency_ms
                else ""
            )
            rows["Latency"] = (
                f"{self.heard_latency_ms:.1f} ms heard: chunk "
                f"{self.chunk_ms:g} ms + p99 {code:.1f} ms{other}"
            )
        if self.counts:
            rows["Devices"] = ", ".join(
                f"{name.replace('_', ' ')} {value:g}"
                for name, value in self.counts.items()
            )
        return rows


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} ms"


def _factor(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _spread(value: Spread | None) -> str:
    if value is None:
        return "none"
    return (
        f"p50 {value.p50:.1f} ms, p95 {value.p95:.1f} ms, "
        f"p99 {value.p99:.1f} ms, max {value.max:.1f} ms"
    )


class ChunkTimes:
    """Takes the time of each chunk of a stream.

    Memory grows by 16 bytes a chunk.

    Arguments
    ---------
    chunk_duration : float
        Duration of a whole chunk (s).
    clock : callable
        Tells the time (s).

    Raises
    ------
    ValueError
        If `chunk_duration` is not positive.

    Example
    -------
    >>> times = ChunkTimes(0.08)
    >>> for chunk in range(3):
    ...     with times.chunk():
    ...         _ = sum(range(1000))
    >>> report = times.report(audio_s=0.24)
    >>> report.chunks, report.overruns, report.real_time_factor < 1
    (3, 0, True)
    """

    def __init__(
        self,
        chunk_duration: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not chunk_duration > 0:
            raise ValueError(
                f"chunk_duration must be positive, got {chunk_duration}"
            )
        self.chunk_duration = chunk_duration
        self.clock = clock
        self.seconds = array("d")
        self.delays = array("d")
        self.tail_seconds: float | None = None

    def add(self, seconds: float, delay: float | None = None) -> None:
        """Add the time of a whole chunk.

        Arguments
        ---------
        seconds : float
            Processing time.
        delay : float, optional
            Live: time from the end of its recording to its result (s). Give
            it for all chunks or for none.
        """
        self.seconds.append(seconds)
        if delay is not None:
            self.delays.append(delay)

    @contextmanager
    def chunk(self, ready: float | None = None) -> Iterator[None]:
        """Time a whole chunk; one that fails does not count.

        Arguments
        ---------
        ready : float, optional
            Live: end of its recording, by `clock`.
        """
        start = self.clock()
        yield
        end = self.clock()
        self.add(end - start, None if ready is None else end - ready)

    @contextmanager
    def tail(self) -> Iterator[None]:
        """Time the last, incomplete chunk."""
        start = self.clock()
        yield
        self.tail_seconds = self.clock() - start

    def report(
        self,
        audio_s: float,
        wall_s: float | None = None,
        other_latency_s: float = 0.0,
        counts: Mapping[str, float] | None = None,
    ) -> LatencyReport:
        """Summarise the times.

        Arguments
        ---------
        audio_s : float
            Length of all audio (s).
        wall_s : float, optional
            Total time, reading and writing included (s).
        other_latency_s : float
            Latency of resampling and of the sound device (s).
        counts : mapping, optional
            Counters of the sound devices by name.

        Returns
        -------
        LatencyReport
            In milliseconds.
        """
        chunk_s, steady = self.chunk_duration, self.seconds[1:]
        processing = Spread.of(steady, 1000)
        delay = Spread.of(self.delays[1:], 1000)
        wait = delay or processing
        chunk_ms, other_ms = 1000 * chunk_s, 1000 * other_latency_s
        return LatencyReport(
            chunk_ms=chunk_ms,
            chunks=len(self.seconds),
            audio_s=audio_s,
            first_ms=1000 * self.seconds[0] if self.seconds else None,
            processing_ms=processing,
            tail_ms=_scaled(self.tail_seconds),
            real_time_factor=(
                sum(steady) / (len(steady) * chunk_s) if steady else None
            ),
            end_to_end_real_time_factor=(
                wall_s / audio_s if wall_s is not None and audio_s else None
            ),
            overruns=sum(seconds > chunk_s for seconds in self.seconds),
            delay_ms=delay,
            late=(
                sum(seconds > chunk_s for seconds in self.delays)
                if self.delays
                else None
            ),
            other_latency_ms=other_ms,
            heard_latency_ms=(
                None if wait is None else chunk_ms + wait.p99 + other_ms
            ),
            counts=dict(counts or {}),
        )


def _scaled(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
