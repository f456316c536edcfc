"""Tensors that are computed from weights once and kept for inference.

Published weights keep the layout of the published code. Some fast paths want
another one (a convolution as a matrix, or its spectrum); computing it in each
call would cost more than it saves.
"""

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["Derived", "fast_path"]


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

    Changes are seen by the weight's storage and version, which optimizers,
    `load_state_dict` and `Module.to` move. Writing through ``.data`` moves
    neither, so :meth:`train` (of the module around it, too) forgets what is
    kept. Copies and pickles start empty.

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
    ...     third = transposed(weight.add_(1))
    >>> first is second, first is third
    (True, False)
    """

    def __init__(self, compute: Callable[..., torch.Tensor]):
        super().__init__()
        self.compute = compute
        self._clear()

    def _clear(self) -> None:
        # One tuple, replaced as a whole: threads may share a model. The
        # weight is kept so that its address is not given to another one.
        self._kept: tuple[tuple, torch.Tensor, torch.Tensor] | None = None

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
        if not fast_path(weight) or weight.is_inference():
            return self.compute(weight, *args)
        state = (weight.data_ptr(), weight._version, weight.dtype, args)
        kept = self._kept
        if kept is None or kept[0] != state:
            # Normal tensors, even in inference mode: they outlive it.
            with torch.inference_mode(False), torch.no_grad():
                source = weight.detach()
                kept = (state, source, self.compute(source, *args))
            self._kept = kept
        return kept[2]

    def _apply(self, *args, **kwargs) -> "Derived":
        """Forget what is kept of weights that move."""
        self._clear()
        return super()._apply(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "Derived":
        return Derived(self.compute).train(self.training)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}
