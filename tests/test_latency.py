"""The times of chunks, and what is told of them."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_focalcodec.streaming.latency import ChunkTimes, Spread

TIMES = st.lists(st.floats(0, 1e3), min_size=1, max_size=300)


@given(TIMES)
def test_percentiles_are_times_that_so_many_do_not_exceed(times):
    spread = Spread.of(times)
    for percent, value in (
        (50, spread.p50),
        (95, spread.p95),
        (99, spread.p99),
    ):
        assert value in times
        covered = sum(x <= value for x in times)
        assert 100 * covered >= percent * len(times)
        below = sum(x < value for x in times)
        assert 100 * below < percent * len(times)
    assert spread.max == max(times)


class Clock:
    """Goes on only when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


def test_report_of_known_times():
    clock = Clock()
    times = ChunkTimes(0.1, clock)
    for seconds in (0.5, 0.02, 0.03, 0.15):
        with times.chunk():
            clock.now += seconds
    with times.tail():
        clock.now += 0.01
    report = times.report(audio_s=0.45, wall_s=0.9, other_latency_s=0.02)
    assert (report.chunk_ms, report.chunks) == (100, 4)
    # The first makes the state: apart, but for the overrun that it is.
    assert report.first_ms == pytest.approx(500)
    assert report.processing_ms.p50 == pytest.approx(30)
    assert report.processing_ms.max == pytest.approx(150)
    assert report.tail_ms == pytest.approx(10)
    assert report.real_time_factor == pytest.approx(0.2 / 0.3)
    assert report.end_to_end_real_time_factor == pytest.approx(2)
    assert report.overruns == 2
    assert report.delay_ms is None and report.late is None
    assert report.heard_latency_ms == pytest.approx(100 + 150 + 20)
    text = "\n".join(f"{k} {v}" for k, v in report.rows().items())
    assert "270.0 ms heard: chunk 100 ms + p99 150.0 ms + device" in text
    assert "2 chunks took longer than 100 ms" in text
    assert "Delay" not in text


def test_waiting_counts_in_live_audio():
    """After a slow chunk the next ones are late, however quick they are."""
    clock = Clock()
    times = ChunkTimes(0.1, clock)
    begin = clock.now
    for i, seconds in enumerate((0.01, 0.01, 0.25, 0.05, 0.05, 0.01)):
        ready = begin + 0.1 * (i + 1)
        clock.now = max(clock.now, ready)
        with times.chunk(ready):
            clock.now += seconds
    report = times.report(0.6, counts={"input_overflows": 3})
    # Delays: 10, 10, 250, 200, 150, 60 ms.
    assert (report.overruns, report.late) == (1, 3)
    assert report.delay_ms.p50 == pytest.approx(150)
    assert report.processing_ms.p50 == pytest.approx(50)
    assert report.heard_latency_ms == pytest.approx(100 + 250)
    rows = report.rows()
    assert rows["Late"].startswith("3 results")
    assert rows["Devices"] == "input overflows 3"


@pytest.mark.parametrize("num", [0, 1])
def test_report_of_next_to_nothing(num):
    times = ChunkTimes(0.08)
    for _ in range(num):
        times.add(0.01)
    report = times.report(0.0, wall_s=1.0)
    assert report.chunks == num
    assert report.processing_ms is None and report.heard_latency_ms is None
    assert report.end_to_end_real_time_factor is None
    saved = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert saved["processing_ms"] is None
    assert "none" in report.rows()["Each chunk"]


def test_a_chunk_that_fails_does_not_count():
    times = ChunkTimes(0.08)
    with pytest.raises(ZeroDivisionError), times.chunk():
        raise ZeroDivisionError
    assert not times.seconds


@pytest.mark.parametrize("duration", [0.0, -1.0, math.nan])
def test_a_chunk_lasts(duration):
    with pytest.raises(ValueError, match="chunk_duration"):
        ChunkTimes(duration)


def test_latency_needs_no_torch():
    code = (
        "import sys; import speechbrain_focalcodec.streaming.latency; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
