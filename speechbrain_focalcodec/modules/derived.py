"""Tensors that are computed from weights and cached for inference.

Weights keep the layout of the published code. Some fast paths need another one
(a convolution as a matrix, or its spectrum); computing it in each call would
cost more than it saves.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Derived", "DerivedFromAll", "can_keep", "fast_path"]


def fast_path(x: torch.Tensor) -> bool:
    """Whether layouts that are faster only on the CPU may be used for `x`.

    Not while gradients are recorded, nor in a graph that is compiled or
    exported, nor under autocast (which does not see cached tensors).
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
    )


class Derived(nn.Module):
    """A tensor computed from a weight, cached until the weight changes.

    The cache shares the weight's memory, copy-on-write: any write to the
    weight, also through ``.data``, first moves the weight, and a weight at
    another address is computed from again. Weights that share their memory
    (part of a larger tensor, shared between processes, or a NumPy array) are
    not cached. Writes through a NumPy array that was taken from a weight
    earlier are not seen; call :meth:`train` (of the module around it, too) to
    clear the cache. Copies and pickles start empty.

    Arguments
    ---------
    compute : callable
        From the weight to the derived tensor; a function of a module, so that
        it can be pickled.

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
        # One tuple, replaced as a whole: threads may share a model. Keeping
        # the weight reserves its address.
        self._kept: tuple[Any, Any, Any] | None = None

    def train(self, mode: bool = True) -> "Derived":
        """Set the mode and clear the cache."""
        self._clear()
        return super().train(mode)

    def forward(self, weight: torch.Tensor, *args: int) -> torch.Tensor:
        """``compute(weight, *args)``, possibly from the cache."""
        if not fast_path(weight) or not can_keep(weight):
            return self.compute(weight, *args)
        kept = self._kept
        if kept is None or kept[0] != _state(weight, args):
            # Normal tensors, even in inference mode: they outlive it.
            with torch.inference_mode(False), torch.no_grad():
                source = torch._lazy_clone(weight.detach())
                # A clone: some functions request write access to read.
                value = self.compute(torch._lazy_clone(source), *args)
            kept = (_state(source, args), source, value)
            self._kept = kept
        return kept[2]

    def _apply(self, *args, **kwargs) -> "Derived":
        """Clear the cache when the weights move."""
        self._clear()
        return super()._apply(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "Derived":
        return type(self)(self.compute).train(self.training)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}


# PyTorch has no public names for copy-on-write; without these nothing is
# cached.
COPIES_ON_WRITE = hasattr(torch, "_lazy_clone") and all(
    hasattr(torch._C, name) for name in ("_data_address", "_is_cow_tensor")
)


def can_keep(weight: torch.Tensor) -> bool:
    """Whether any write to a weight on the CPU would be noticed."""
    if not COPIES_ON_WRITE or weight.is_inference():
        return False
    if torch._C._is_cow_tensor(weight):  # type: ignore[attr-defined]
        return True
    if weight.untyped_storage().nbytes() != weight.nbytes:
        # The memory is shared with other tensors.
        return False
    try:
        with torch.inference_mode(False), torch.no_grad():
            torch._lazy_clone(weight.detach())
    except RuntimeError:
        return False
    return True


class DerivedFromAll(Derived):
    """A value computed from all weights of a module, cached until one changes.

    Changes on a GPU, and of weights that share their memory, are detected by a
    checksum of the values.
    """

    def forward(self, module: nn.Module) -> Any:  # type: ignore[override]
        """``compute(module)``, possibly from the cache."""
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
    """Address, type and layout of a weight."""
    # `data_ptr` would count as writing.
    address = torch._C._data_address(weight)  # type: ignore[attr-defined]
    return address, weight.dtype, weight.shape, weight.stride(), args


def _seen_state(weight: torch.Tensor) -> tuple:
    """The state of a weight; with checksums where writes go unseen."""
    if weight.device.type == "cpu" and can_keep(weight):
        return _state(weight, (weight._version,))
    values = weight.detach().contiguous().flatten().view(torch.uint8)
    sums = [int(part.sum()) for part in (values[::2], values[::3], values)]
    return weight.data_ptr(), weight.dtype, weight.shape, *sums
