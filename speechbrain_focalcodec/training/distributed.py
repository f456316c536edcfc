"""Sums and means over the batch of all processes.

DistributedDataParallel averages gradients over processes. If a loss is not a
mean over equal parts (utterances of different lengths, an entropy), this
average is not the gradient of the whole batch. Losses built from the functions
here have the same value and gradient on one process and on several.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from speechbrain.utils.distributed import (
    MainProcessContext,
    ddp_prevent_block,
    if_main_process,
    is_distributed_initialized,
)
from torch import distributed

__all__ = [
    "gather",
    "mean_over_processes",
    "norm_over_processes",
    "num_processes",
    "run_long_on_main",
    "sum_over_processes",
]

# Other processes may wait for days.
_TIMEOUT = timedelta(days=60)


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the processes that share a training batch.

    The gradient is scaled so that DistributedDataParallel's average is the
    gradient of the sum. All processes must compute the same loss from it.
    Returns the tensor itself on one process and without gradients (in
    validation each process has all the data).
    """
    if not _batch_is_shared():
        return x
    total = x.detach().clone()
    distributed.all_reduce(total)
    if x.requires_grad:
        total = total + num_processes() * (x - x.detach())
    return total


def mean_over_processes(
    mean: torch.Tensor, weight: torch.Tensor | float
) -> torch.Tensor:
    """Mean over the whole batch from the means over each process's part.

    `weight` is the number of elements of this process's means, such as frames.
    :func:`sum_over_processes` describes the gradient.
    """
    if not _batch_is_shared():
        return mean
    mean = mean.float()  # autocast's types are too coarse for weights
    weight = torch.as_tensor(weight).to(mean)
    sums = torch.cat([(mean * weight).reshape(-1), weight.reshape(1)])
    sums = sum_over_processes(sums)
    return (sums[:-1] / sums[-1]).reshape(mean.shape)


def norm_over_processes(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of a tensor whose parts are on several processes."""
    if not _batch_is_shared():
        return x.norm()
    square = sum_over_processes(x.square().sum())
    return square.clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def gather(value: Any) -> list[Any]:
    """Picklable values of all processes, by rank."""
    # In code that SpeechBrain runs on one process only.
    if ddp_prevent_block():
        return [value]
    values: list[Any] = [None] * num_processes()
    distributed.all_gather_object(values, value)
    return values


def num_processes() -> int:
    """Number of processes; 1 if training is not distributed."""
    if not is_distributed_initialized():
        return 1
    return distributed.get_world_size()


def run_long_on_main(work: Callable[[], object]) -> None:
    """Run a function on the main process while the others wait.

    SpeechBrain's ``run_on_main`` times out after two hours. All processes must
    call this. Other processes raise a RuntimeError with the message of an error
    on the main process.
    """
    if num_processes() == 1:
        work()
        return
    # NCCL would keep the other GPUs busy while they wait.
    group: Any = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
    error: Exception | None = None
    if if_main_process():
        try:
            # Collectives in it must not wait for the others.
            with MainProcessContext():
                work()
        except Exception as caught:
            error = caught
    message = [None if error is None else f"{type(error).__name__}: {error}"]
    distributed.broadcast_object_list(message, src=0, group=group)
    distributed.destroy_process_group(group)
    if error is not None:
        raise error
    if message[0] is not None:
        raise RuntimeError(f"the main process has stopped: {message[0]}")


def _batch_is_shared() -> bool:
    return is_distributed_initialized() and torch.is_grad_enabled()
