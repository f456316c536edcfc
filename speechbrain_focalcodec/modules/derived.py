"""Tensors that are computed from weights once and kept for inference.

Published weights keep the layout of the published code. Some fast paths want
another one (a convolution as a matrix, or its spectrum); computing it in each
call would cost more than it saves.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Derived", "DerivedFromAll", "can_keep", "fast_path"]


def fast_path(x: torch.Tensor) -> bool:
    """Whether layouts that pay on the CPU alone may be used.

    Not while gradients are recorded, nor in a graph that is compiled or
    exported, nor under autocast (which does not see what is kept).

    Arguments
    ---------
    x : torch.Tensor
        A module's input.

    Returns
    -------
    bool
        Whether they may.

    Example
    -------
    >>> with torch.no_grad():
    ...     fast_path(torch.zeros(1))
    True
    >>> fast_path(torch.zeros(1))
    False
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
    )


class Derived(nn.Module):
    """A tensor computed from a weight, kept until the weight changes.

    What is kept shares the weight's memory, copy on write: whatever writes to
    the weight, also through ``.data``, first moves it to memory of its own,
    and a weight at another address is computed from again. A weight whose
    memory is not its own (part of a larger tensor, shared between processes,
    or of a NumPy array) is computed from in each call. A NumPy array that was
    taken from a weight earlier writes unseen; :meth:`train` (of the module
    around it, too) forgets what is kept. Copies and pickles start empty.

    Arguments
    ---------
    compute : callable
        From the weight to the tensor to keep; a function of a module, so
        that it can be pickled.

    Example
    -------
    >>> transposed = Derived(torch.t)
    >>> weight = torch.ones(2, 3)
    >>> with torch.no_grad():
    ...     first = transposed(weight)
    ...     second = transposed(weight)
    ...     weight.data[0, 0] = 5
    ...     third = transposed(weight)
    >>> first is second, first is third
    (True, False)
    """

    def __init__(self, compute: Callable[..., Any]):
        super().__init__()
        self.compute = compute
        self._clear()

    def _clear(self) -> None:
        # One tuple, replaced as a whole: threads may share a model. The
        # weight is kept so that its address is not given to another one.
        self._kept: tuple[Any, Any, Any] | None = None

    def train(self, mode: bool = True) -> "Derived":
        """Set the mode, and forget what is kept.

        Arguments
        ---------
        mode : bool
            Whether to train.

        Returns
        -------
        Derived
            This module.
        """
        self._clear()
        return super().train(mode)

    def forward(self, weight: torch.Tensor, *args: int) -> torch.Tensor:
        """Give the derived tensor.

        Arguments
        ---------
        weight : torch.Tensor
            What it is computed from.
        *args : int
            Further arguments of the function.

        Returns
        -------
        torch.Tensor
            ``compute(weight, *args)``, perhaps of an earlier call.
        """
        if not fast_path(weight) or not can_keep(weight):
            return self.compute(weight, *args)
        kept = self._kept
        if kept is None or kept[0] != _state(weight, args):
            # Normal tensors, even in inference mode: they outlive it.
            with torch.inference_mode(False), torch.no_grad():
                source = torch._lazy_clone(weight.detach())
                # A clone, as some functions take memory to write for reading.
                value = self.compute(torch._lazy_clone(source), *args)
            kept = (_state(source, args), source, value)
            self._kept = kept
        return kept[2]

    def _apply(self, *args, **kwargs) -> "Derived":
        """Forget what is kept of weights that move."""
        self._clear()
        return super()._apply(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "Derived":
        return type(self)(self.compute).train(self.training)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}


# PyTorch has no public names for copies on write; where these are missing,
# nothing is kept.
COPIES_ON_WRITE = hasattr(torch, "_lazy_clone") and all(
    hasattr(torch._C, name) for name in ("_data_address", "_is_cow_tensor")
)


def can_keep(weight: torch.Tensor) -> bool:
    """Whether all that writes to a weight on the CPU would be noticed.

    Arguments
    ---------
    weight : torch.Tensor
        The weight.

    Returns
    -------
    bool
        Whether what is derived from it may be kept.

    Example
    -------
    >>> can_keep(torch.ones(2)), can_keep(torch.ones(2).share_memory_())
    (True, False)
    """
    if not COPIES_ON_WRITE or weight.is_inference():
        return False
    if torch._C._is_cow_tensor(weight):
        return True
    if weight.untyped_storage().nbytes() != weight.nbytes:
        # Others write to the same memory, and each would move all of it.
        return False
    try:
        with torch.inference_mode(False), torch.no_grad():
            torch._lazy_clone(weight.detach())
    except RuntimeError:
        return False
    return True


class DerivedFromAll(Derived):
    """What is computed from all weights of a module, kept until one changes.

    On a GPU, and in memory that is not a weight's own, a checksum of the
    values tells of changes.

    Arguments
    ---------
    compute : callable
        From the module to what is to be kept.

    Example
    -------
    >>> linear, total = nn.Linear(2, 3), DerivedFromAll(
    ...     lambda module: module.bias.detach().sum().item()
    ... )
    >>> before = total(linear)
    >>> linear.bias.data[0] += 8
    >>> round(total(linear) - before)
    8
    """

    def forward(self, module: nn.Module) -> Any:  # type: ignore[override]
        """Give what is derived.

        Arguments
        ---------
        module : nn.Module
            What it is computed from.

        Returns
        -------
        object
            ``compute(module)``, perhaps of an earlier call.
        """
        weights = [*module.parameters(), *module.buffers()]
        if any(weight.is_inference() for weight in weights):
            return self.compute(module)
        kept = self._kept
        if kept is None or kept[0] != list(map(_seen_state, weights)):
            value = self.compute(module)
            with torch.inference_mode(False), torch.no_grad():
                sources = [
                    torch._lazy_clone(weight.detach())
                    for weight in weights
                    if weight.device.type == "cpu" and can_keep(weight)
                ]
            kept = (list(map(_seen_state, weights)), sources, value)
            self._kept = kept
        return kept[2]


def _state(weight: torch.Tensor, args: tuple) -> tuple:
    """Where a weight lies, and as what."""
    # `data_ptr` would count as writing.
    address = torch._C._data_address(weight)
    return address, weight.dtype, weight.shape, weight.stride(), args


def _seen_state(weight: torch.Tensor) -> tuple:
    """The state of a weight; with checksums where a write could go unseen."""
    if weight.device.type == "cpu" and can_keep(weight):
        return _state(weight, (weight._version,))
    values = weight.detach().contiguous().flatten().view(torch.uint8)
    sums = [int(part.sum()) for part in (values[::2], values[::3], values)]
    return weight.data_ptr(), weight.dtype, weight.shape, *sums
