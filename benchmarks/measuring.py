"""Time, memory, work and the machine: what the benchmarks measure with."""

import ctypes
import gc
import importlib.metadata
import math
import multiprocessing
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import speechbrain_focalcodec

MIB = 2**20
MATRIX_SIZE = 2048


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given.

    Arguments
    ---------
    device : torch.device
        The CPU is never behind.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_runs(
    run: Callable[[], Any], repeats: int, device: torch.device
) -> list[float]:
    """Time something several times; warming up is the caller's.

    Arguments
    ---------
    run : callable
        Without arguments.
    repeats : int
        Times to run it.
    device : torch.device
        Where it runs.

    Returns
    -------
    list of float
        Seconds of each run.
    """
    walls = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        walls.append(time.perf_counter() - start)
    return walls


def matrix_rate(
    device: torch.device, size: int = MATRIX_SIZE, repeats: int = 8
) -> float:
    """Measure the machine's float32 matrix rate: the physical limit.

    Arguments
    ---------
    device : torch.device
        Where to multiply, with the threads and the precision torch is set to.
    size : int
        The product is size x size x size.
    repeats : int
        The fastest of so many products counts.

    Returns
    -------
    float
        Multiply-accumulates a second.
    """
    left, right = torch.rand(2, size, size, device=device)
    out = torch.empty_like(left)

    def multiply():
        torch.mm(left, right, out=out)

    time_runs(multiply, 2, device)
    return size**3 / min(time_runs(multiply, repeats, device))


@dataclass
class Work:
    """Multiply-accumulates, of which the pointwise ones are left out.

    Arguments
    ---------
    layers : float
        Of linear layers and convolutions: they grow with the length.
    attention : float
        Of the products of queries, keys and values: with its square.
    """

    layers: float
    attention: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.layers + self.attention

    def __truediv__(self, number: float) -> "Work":
        return Work(self.layers / number, self.attention / number)


def count_work(run: Callable[[], Any]) -> Work:
    """Count the multiply-accumulates of matrix products and convolutions.

    The Fourier transform of the decoder (less than a thousandth of the work)
    does not count, nor does an op that torch's counter does not know, such
    as a quantized product. Gradients are enabled, which turns the codec's fast
    paths off: what counts is the work of the plain layers, however few
    multiplications a fast path takes for it.

    Arguments
    ---------
    run : callable
        Is run once.

    Returns
    -------
    Work
        What it did.

    Example
    -------
    >>> layer = torch.nn.Linear(3, 5)
    >>> count_work(lambda: layer(torch.ones(7, 3)))
    Work(layers=105.0, attention=0.0)
    """
    # The counter knows no attention that is made for the CPU.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(
        display=False, custom_mapping={kernel: _attention_flops}
    )
    # In inference mode the counter's own hooks fail.
    with torch.inference_mode(False), torch.enable_grad(), counter:
        run()
    work = Work(0.0, 0.0)
    for op, flops in counter.get_flop_counts()["Global"].items():
        # Batched products are those of attention without its own kernel.
        if "attention" in str(op) or "bmm" in str(op):
            work.attention += flops / 2
        else:
            work.layers += flops / 2
    return work


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_, **__
) -> int:
    """Of two products: queries by keys, and weights by values."""
    steps = query[-2] * key[-2] * (query[-1] + value[-1])
    return 2 * math.prod(query[:-2]) * steps


@dataclass
class PeakMemory:
    """The highest use of memory during some work.

    On the CPU it is what the process holds (resident set), code and all
    weights included; on CUDA what torch allocated.

    Arguments
    ---------
    peak : float, optional
        Mebibytes; None where it cannot be known.
    above : float, optional
        Mebibytes above the state before the work.
    """

    peak: float | None = None
    above: float | None = None


def measure_memory(
    run: Callable[[], Any], device: torch.device
) -> tuple[Any, PeakMemory]:
    """Find the highest use of memory during some work.

    Arguments
    ---------
    run : callable
        The work.
    device : torch.device
        Whose memory to look at.

    Returns
    -------
    result
        What `run` gives.
    PeakMemory
        Without numbers where the system does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        peak = torch.cuda.max_memory_allocated(device)
        return result, PeakMemory(peak / MIB, (peak - before) / MIB)
    was_reset = _reset_peak()
    before = _status("VmRSS")
    result = run()
    peak = _status("VmHWM")
    if not was_reset or before is None or peak is None:
        return result, PeakMemory()
    return result, PeakMemory(peak, peak - before)


def process_peak() -> float:
    """Tell the most memory that this process held, ever or since a reset.

    Returns
    -------
    float
        Mebibytes.
    """
    peak = _status("VmHWM")
    if peak is None:
        unit = 1 if platform.system() == "Darwin" else 1024
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_maxrss * unit / MIB
    return peak


def _reset_peak() -> bool:
    """Let the high-water mark of this process begin anew, if Linux allows."""
    try:
        # What was freed but kept for later would hide what is used again.
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> float | None:
    """One entry of this process's status, in mebibytes."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, with the same number of threads.

    Its memory is then its own, and goes back when it ends.

    Arguments
    ---------
    function : callable
        Of a module that can be imported.
    *arguments : tuple
        What can be pickled.

    Returns
    -------
    object
        What the function gives.

    Raises
    ------
    concurrent.futures.process.BrokenProcessPool
        If the process was killed, as when memory is short.
    """
    with ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),
        torch.set_num_threads,
        (torch.get_num_threads(),),
    ) as pool:
        return pool.submit(function, *arguments).result()


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Tell where and with what something was measured.

    Arguments
    ---------
    device : torch.device
        Where it ran.

    Returns
    -------
    dict
        Date, processor, threads, and versions; None for what is not there.
    """
    cuda = device.type == "cuda"
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
        "transformers": _version("transformers"),
        "speechbrain_focalcodec": speechbrain_focalcodec.__version__,
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
