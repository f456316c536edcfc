"""Losses over the batch that several processes share.

DistributedDataParallel averages the processes' gradients. Where a loss is no
mean over equal parts (utterances differ in length, an entropy is no mean), the
average is not the gradient that one process with the whole batch would have.
Losses that are made of the sums and means here are the same, and have the same
gradient, on one process and on several.
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

# What other processes wait for may take days.
_PATIENCE = timedelta(days=60)


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the processes that share a training batch.

    The gradient is scaled so that its average over the processes, as
    DistributedDataParallel takes it, is the gradient of the sum. For that, all
    processes must compute the same from the sum.

    Without gradients (in validation, where each process has all the data) and
    on one process the tensor is given back.

    Arguments
    ---------
    x : torch.Tensor
        Of the same shape on all processes.

    Returns
    -------
    torch.Tensor
        The sum.

    Example
    -------
    >>> sum_over_processes(torch.ones(2))
    tensor([1., 1.])
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
    """Mean over the whole batch from the mean over a process's part of it.

    Arguments
    ---------
    mean : torch.Tensor
        One mean or several, of any shape.
    weight : torch.Tensor or float
        What they are means over: a number of frames, of samples, ...

    Returns
    -------
    torch.Tensor
        The mean; see :func:`sum_over_processes` for its gradient.

    Example
    -------
    >>> mean_over_processes(torch.tensor(0.5), 100)
    tensor(0.5000)
    """
    if not _batch_is_shared():
        return mean
    mean = mean.float()  # autocast's types are too coarse for weights
    weight = torch.as_tensor(weight).to(mean)
    sums = torch.cat([(mean * weight).reshape(-1), weight.reshape(1)])
    sums = sum_over_processes(sums)
    return (sums[:-1] / sums[-1]).reshape(mean.shape)


def norm_over_processes(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of a tensor whose parts are on several processes.

    Arguments
    ---------
    x : torch.Tensor
        This process's part.

    Returns
    -------
    torch.Tensor
        Scalar; see :func:`sum_over_processes` for its gradient.

    Example
    -------
    >>> norm_over_processes(torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    if not _batch_is_shared():
        return x.norm()
    square = sum_over_processes(x.square().sum())
    return square.clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def gather(value: Any) -> list[Any]:
    """The value that each process has.

    Arguments
    ---------
    value : object
        Picklable.

    Returns
    -------
    list
        By rank; of the value alone without other processes.

    Example
    -------
    >>> gather(3)
    [3]
    """
    # Within what SpeechBrain runs on one process, others do not answer.
    if ddp_prevent_block():
        return [value]
    values: list[Any] = [None] * num_processes()
    distributed.all_gather_object(values, value)
    return values


def num_processes() -> int:
    """How many processes train together.

    Returns
    -------
    int
        1 when training is not distributed.

    Example
    -------
    >>> num_processes()
    1
    """
    if not is_distributed_initialized():
        return 1
    return distributed.get_world_size()


def run_long_on_main(work: Callable[[], object]) -> None:
    """Run something on the main process, and let the others wait for it.

    However long: SpeechBrain's ``run_on_main`` gives up after two hours. All
    processes call this.

    Arguments
    ---------
    work : callable
        Runs on the main process alone.

    Raises
    ------
    Exception
        What `work` raises; RuntimeError, with its message, on the others.

    Example
    -------
    >>> run_long_on_main(lambda: print("hello"))
    hello
    """
    if num_processes() == 1:
        work()
        return
    # Not NCCL, which would keep the others' GPUs busy with waiting.
    group: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    error: Exception | None = None
    if if_main_process():
        try:
            # So that nothing in it waits for the others.
            with MainProcessContext():
                work()
        except Exception as caught:
            error = caught
    told = [None if error is None else f"{type(error).__name__}: {error}"]
    distributed.broadcast_object_list(told, src=0, group=group)
    distributed.destroy_process_group(group)
    if error is not None:
        raise error
    if told[0] is not None:
        raise RuntimeError(f"the main process has stopped: {told[0]}")


def _batch_is_shared() -> bool:
    return is_distributed_initialized() and torch.is_grad_enabled()
