"""Cases of the benchmark of speed: each system, length and batch measured."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from measuring import (
    PeakMemory,
    Work,
    count_work,
    matrix_rate,
    measure_memory,
    synchronize,
    time_runs,
)
from systems import Missing, System

# A larger batch must be faster by so much to be worth its memory.
GAIN = 1.03


@dataclass
class Settings:
    """What to measure.

    Arguments
    ---------
    seconds : list of float
        Lengths of the audio.
    batches : list of int
        Items at once.
    device : torch.device
        Where.
    repeats : int
        Timed runs of each case, after one to warm up.
    max_wall : float
        Seconds a case may take; what is expected to take longer is skipped.
    best_batch : bool
        Whether to search the fastest batch too, doubling it.
    max_batch : int
        Where that search ends.
    reference_seconds : float
        The length that gives the work of the layers, see :class:`Case`.
    matrix_size : int
        Of the product that gives the physical limit.
    """

    seconds: list[float]
    batches: list[int]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    repeats: int = 5
    max_wall: float = 600.0
    best_batch: bool = False
    max_batch: int = 1024
    reference_seconds: float = 10.0
    matrix_size: int = 2048


@dataclass
class Case:
    """One stage of one system at one length and batch.

    Arguments
    ---------
    system, stage : str
        What was measured.
    seconds : float
        Audio, of each item.
    batch : int
        Items.
    skipped : str, optional
        Why there are no numbers.
    walls : list of float
        Seconds of each run.
    wall : float, optional
        Their median.
    times_real_time : float, optional
        Seconds of audio, all items together, that take one second.
    memory : PeakMemory
        In mebibytes.
    gmac_per_second : float, optional
        Work for a second of audio, counted at this length and batch 1 (10^9
        multiply-accumulates).
    share : float, optional
        Share of the matrix rate that this work reaches.
    layer_share : float, optional
        The same with the work of linear layers and convolutions alone, in a
        pass over the reference length. Neither longer attention nor windows
        that overlap raise it.
    """

    system: str
    stage: str
    seconds: float
    batch: int
    skipped: str | None = None
    walls: list[float] = field(default_factory=list)
    wall: float | None = None
    times_real_time: float | None = None
    memory: PeakMemory = field(default_factory=PeakMemory)
    gmac_per_second: float | None = None
    share: float | None = None
    layer_share: float | None = None


@dataclass
class SystemResult:
    """All cases of a system.

    Arguments
    ---------
    name : str
        The system.
    skipped : str, optional
        Why it is missing.
    facts : dict
        What it is.
    matrix_rates : list of float
        Before and after its cases (multiply-accumulates a second).
    cases : list of Case
        What was measured.
    """

    name: str
    skipped: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    matrix_rates: list[float] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)


# Work for a second of audio, by system, stage and seconds.
Counts = dict[tuple[str, str, float], Work]


def measure_system(
    system: System,
    stages: list[str],
    settings: Settings,
    counts: Counts,
    echo: Callable[[str], Any] = print,
) -> SystemResult:
    """Load a system, measure all its cases and forget it.

    Arguments
    ---------
    system : System
        What to measure.
    stages : list of str
        Which of its stages.
    settings : Settings
        Lengths, batches, device.
    counts : dict
        Work already counted; what is counted here is added.
    echo : callable
        Is told of each case.

    Returns
    -------
    SystemResult
        Without cases when the system is missing.
    """
    try:
        system.load(settings.device)
    except Missing as error:
        echo(f"{system.name}: skipped, {error}")
        return SystemResult(system.name, skipped=str(error))
    result = SystemResult(system.name, facts=system.facts)
    result.matrix_rates.append(_rate(settings))
    with torch.inference_mode():
        for stage in [stage for stage in system.stages if stage in stages]:
            for case in _measure_stage(system, stage, settings, echo):
                result.cases.append(case)
    result.matrix_rates.append(_rate(settings))
    for case in result.cases:
        if case.wall is not None:
            _add_shares(case, system, settings, counts, result.matrix_rates)
    system.unload()
    _free_memory(settings.device)
    return result


def _rate(settings: Settings) -> float:
    return matrix_rate(settings.device, settings.matrix_size)


def _measure_stage(system, stage, settings, echo):
    """Give the cases of one stage, as they are measured."""
    speed = None
    for seconds in settings.seconds:
        done: dict[int, Case] = {}

        def measure(batch, seconds=seconds, done=done):
            nonlocal speed
            if batch not in done:
                case = Case(system.name, stage, seconds, batch)
                _measure(case, system, settings, speed)
                speed = case.times_real_time or speed
                done[batch] = case
                echo(_describe(case))
            return done[batch]

        for batch in settings.batches:
            measure(batch)
        if settings.best_batch:
            _search_batch(measure, settings.max_batch)
        yield from done.values()


def _search_batch(measure: Callable[[int], Case], limit: int) -> None:
    """Double the batch until memory runs out or nothing is gained."""
    best, batch = 0.0, 1
    while batch <= limit:
        speed = measure(batch).times_real_time
        if speed is None or speed < GAIN * best:
            return
        best, batch = speed, 2 * batch


def _measure(
    case: Case, system: System, settings: Settings, speed: float | None
) -> None:
    """Fill in a case; `speed` is that of an earlier one, to look ahead."""
    audio = case.seconds * case.batch
    if speed is not None:
        expected = audio / speed * (settings.repeats + 1)
        if expected > settings.max_wall:
            case.skipped = (
                f"would take about {expected:.0f} s, more than "
                f"{settings.max_wall:g} s (--max-wall)"
            )
            return

    def work():
        run = system.prepare(case.stage, case.seconds, case.batch)
        run()
        return time_runs(run, settings.repeats, settings.device)

    try:
        case.walls, case.memory = measure_memory(work, settings.device)
    except RuntimeError as error:
        # Of any kind: on a GPU it is not always called out of memory.
        case.skipped = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if case.skipped:
        _free_memory(settings.device)
        return
    case.wall = statistics.median(case.walls)
    case.times_real_time = audio / case.wall


def _add_shares(
    case: Case,
    system: System,
    settings: Settings,
    counts: Counts,
    rates: list[float],
) -> None:
    """Relate the time to the work and the machine's matrix rate."""
    lengths = case.seconds, settings.reference_seconds
    for seconds in lengths:
        key = system.base, case.stage, seconds
        if system.counted and key not in counts:
            # Not in the timed runs: counting may turn off what is fast.
            run = system.prepare(case.stage, seconds, 1)
            counts[key] = count_work(run) / seconds
    here, reference = (
        counts.get((system.base, case.stage, seconds)) for seconds in lengths
    )
    if here is None or reference is None or case.times_real_time is None:
        return
    reached = case.times_real_time / statistics.mean(rates)
    case.gmac_per_second = here.total / 1e9
    case.share = here.total * reached
    case.layer_share = reference.layers * reached


def _free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()


def _describe(case: Case) -> str:
    head = f"{case.system}, {case.stage}, {case.seconds:g} s x {case.batch}: "
    if case.wall is None:
        return f"{head}skipped, {case.skipped}"
    return f"{head}{case.wall:.3f} s, {case.times_real_time:.1f} x real time"
