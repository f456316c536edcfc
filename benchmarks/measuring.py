"""Time, memory, work and the machine, and tables of what was measured."""

import ctypes
import gc
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

import speechbrain_focalcodec
from speechbrain_focalcodec.utils.files import atomic_write_text

MIB = 2**20
CPU = torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_runs(
    run: Callable[[], Any], repeats: int, device: torch.device = CPU
) -> list[float]:
    """Time a function several times, without warming up (seconds)."""
    walls = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        walls.append(time.perf_counter() - start)
    return walls


def time_in_turns(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: torch.device = CPU,
) -> dict[str, list[float]]:
    """Time functions in turns, so that other work slows all of them alike.

    Each runs once more, first, to warm up. Gives seconds of each run by name.
    """
    walls: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            walls[name] += time_runs(run, 1, device)
    return {name: times[1:] for name, times in walls.items()}


def matrix_rate(device: torch.device, size: int = 2048) -> float:
    """Measure float32 matrix products (multiply-accumulates a second)."""
    left, right = torch.rand(2, size, size, device=device)
    out = torch.empty_like(left)

    def multiply():
        torch.mm(left, right, out=out)

    return size**3 / min(time_runs(multiply, 10, device)[2:])


@dataclass
class Work:
    """Multiply-accumulates of matrix products and convolutions.

    Arguments
    ---------
    layers : float
        Linear layers and convolutions; grows with the length.
    attention : float
        Products of queries, keys and values; grows with its square.
    """

    layers: float = 0.0
    attention: float = 0.0


def count_work(run: Callable[[], Any]) -> Work:
    """Count the multiply-accumulates of a function.

    Fourier transforms, pointwise operations and quantized products do not
    count. Gradients are enabled, so that the codec runs its plain layers: a
    fast path needs fewer multiplications for the same work.

    Example
    -------
    >>> layer = torch.nn.Linear(3, 5)
    >>> count_work(lambda: layer(torch.ones(7, 3)))
    Work(layers=105.0, attention=0.0)
    """
    # The counter does not know the attention kernel of the CPU.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(
        display=False, custom_mapping={kernel: _attention_flops}
    )
    # In inference mode the counter's own hooks fail.
    with torch.inference_mode(False), torch.enable_grad(), counter:
        run()
    work = Work()
    for op, flops in counter.get_flop_counts()["Global"].items():
        # Attention without a kernel of its own uses batched products.
        if "attention" in str(op) or "bmm" in str(op):
            work.attention += flops / 2
        else:
            work.layers += flops / 2
    return work


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_, **__
) -> int:
    steps = query[-2] * key[-2] * (query[-1] + value[-1])
    return 2 * math.prod(query[:-2]) * steps


@dataclass
class PeakMemory:
    """Highest memory use of some work (MiB).

    On the CPU it is the resident set of the process, on CUDA the memory that
    torch allocated.

    Arguments
    ---------
    peak : float, optional
        In all; None where the system does not tell.
    above : float, optional
        Above the use before the work.
    """

    peak: float | None = None
    above: float | None = None


def measure_memory(
    run: Callable[[], Any], device: torch.device = CPU
) -> tuple[Any, PeakMemory]:
    """Run a function; give its result and its highest memory use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        peak = torch.cuda.max_memory_allocated(device)
        return result, PeakMemory(peak / MIB, (peak - before) / MIB)
    was_reset = _reset_peak()
    resident = _status("VmRSS")
    result = run()
    highest = _status("VmHWM")
    if not was_reset or resident is None or highest is None:
        return result, PeakMemory()
    return result, PeakMemory(highest, highest - resident)


def process_peak() -> float:
    """Highest memory of this process since its start or last reset (MiB)."""
    peak = _status("VmHWM")
    if peak is None:
        unit = 1 if platform.system() == "Darwin" else 1024
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_maxrss * unit / MIB
    return peak


def _reset_peak() -> bool:
    """Reset the peak of this process, where Linux allows it."""
    try:
        # Memory that was freed but kept would hide later use.
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> float | None:
    """One entry of this process's status (MiB)."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, with the same number of threads.

    Raises `BrokenProcessPool` if the process is killed, for example when
    memory is short.
    """
    with ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),
        torch.set_num_threads,
        (torch.get_num_threads(),),
    ) as pool:
        return pool.submit(function, *arguments).result()


def describe_machine(device: torch.device = CPU) -> dict[str, Any]:
    """Date, processor, threads and versions; None for a missing library."""
    cuda = device.type == "cuda"
    try:
        transformers = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        transformers = None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers,
        "speechbrain_focalcodec": speechbrain_focalcodec.__version__,
    }


def title_of(machine: Mapping[str, Any]) -> str:
    """One line about the machine, to stand above a table."""
    where = machine["gpu"] or (
        f"{machine['cpu']} ({machine['cpu_capability']}), "
        f"threads: {machine['threads']}"
    )
    return f"{where}, torch {machine['torch']}"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def parse_names(text: str) -> list[str]:
    """Split an option such as ``"bf16,int8"``; no name comes twice."""
    names = [name.strip() for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def parse_numbers(text: str, minimum: float = 0.0) -> list[float]:
    """Read an option such as ``"2,10,30"``: in rising order, none twice."""
    try:
        numbers = sorted({float(name) for name in parse_names(text)})
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}") from error
    if not numbers or not minimum <= numbers[0] <= numbers[-1] < math.inf:
        raise typer.BadParameter(
            f"{text!r}: give numbers of at least {minimum:g}, with commas "
            "between them"
        )
    return numbers


def show(value: Any, form: str = ".3g") -> str:
    """Format a number for a table; None becomes a dash.

    Example
    -------
    >>> show(1 / 3, ".0%"), show(None), show("DAC")
    ('33%', '–', 'DAC')
    """
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, float) else str(value)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table whose columns line up."""
    table = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        f"| {' | '.join(map(str.ljust, cells, widths))} |" for cells in table
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write results atomically; nothing without a path."""
    if path is not None:
        atomic_write_text(path, json.dumps(result, indent=1) + "\n")
