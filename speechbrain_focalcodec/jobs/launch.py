"""Starting the processes that share a run on one machine.

On a CPU, several processes of few threads do more than one of many: what lies
between the products of matrices does not spread over threads.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

__all__ = ["cores", "default_processes", "end_with_parent", "launch"]

# Memory for a model each: no more than this unless asked for.
_MOST = 4
# Without one of these torch need not be asked, which takes seconds.
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_GRACE = 30.0  # seconds that a process has to end by itself
_PARENT = "FOCALCODEC_PARENT"  # a pipe that ends with the parent


def default_processes(device: str | None) -> int:
    """The number of processes that a run on this machine is best shared by.

    Arguments
    ---------
    device : str, optional
        Where the model is to be; the CPU when there is no GPU.

    Returns
    -------
    int
        One on a GPU, up to four on a CPU, and one within torchrun or srun,
        which say it themselves.

    Example
    -------
    >>> default_processes("cuda:0")
    1
    """
    if "RANK" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ:
        return 1
    if device is None and any(map(os.path.exists, _GPUS)):
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return min(cores(), _MOST) if device in (None, "cpu") else 1


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run the command line in several processes, which meet as a group.

    Arguments
    ---------
    arguments : sequence of str
        Of ``python``, for each.
    processes : int
        How many.

    Returns
    -------
    int
        The exit code of the first one, which leads; 128 and the number of the
        signal when one ended it, or this process.

    Example
    -------
    >>> launch(["-c", "import os; exit(int(os.environ['RANK']))"], 2)
    0
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Nothing is ever written: the other end closes with this process.
    ours, theirs = os.pipe()
    threads = max(1, cores() // processes)
    children = []
    for rank in range(processes):
        env = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            _PARENT: str(ours),
        }
        children.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env=env,
                pass_fds=[ours],
                # Ctrl-C comes once, from here.
                preexec_fn=os.setpgrp,
            )
        )
    os.close(ours)
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        code = children[0].wait()
    finally:
        for child in children[1:]:
            # The leader waits for the others unless it gave up. One that was
            # told already is ending: a second signal would cut that short.
            if not received:
                child.terminate()
        for child in children[1:]:
            _end(child)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(theirs)
    if received:
        return 128 + received[0]
    return code if code >= 0 else 128 - code


def _end(child: subprocess.Popen) -> None:
    """Wait for a process that was asked to end, but not for ever."""
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        # It waits in C++ for a leader that never listened: for half an hour,
        # in which Python sees no signal. What it writes is renamed when whole.
        child.kill()
        child.wait()


def end_with_parent() -> bool:
    """End this process when the one that :func:`launch` ran in is gone.

    Returns
    -------
    bool
        Whether this process was launched.

    Example
    -------
    >>> end_with_parent()  # was not launched: does nothing
    False
    """
    pipe = os.environ.pop(_PARENT, None)
    if pipe is None:
        return False

    def watch() -> None:
        os.read(int(pipe), 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return True


def cores() -> int:
    """Cores that this process may use: Slurm may bind it to its own.

    Returns
    -------
    int
        Their number.

    Example
    -------
    >>> cores() > 0
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
