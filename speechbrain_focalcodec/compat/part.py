"""The published interface of the parts.

Options have a fixed order, and parts are called as ``output, *state =
part(input, *state)``. The computation is inherited from
:mod:`speechbrain_focalcodec.modules`.
"""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from speechbrain_focalcodec.modules.causal import StreamState
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.utils.lengths import absolute_lengths

__all__ = ["Part", "TensorState"]

Table = dict[str, Any]


class TensorState(StreamState):
    """A stream's state in tensors that are never written to.

    So a state may be reused, as in the published package: a call does not
    change the state that it is given.
    """

    def append(
        self,
        name: str,
        x: torch.Tensor,
        past: int,
        dim: int = 1,
        newest_first: bool = False,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        kept = self.get(name)
        if kept is None and start is not None:
            shape = list(x.shape)
            shape[dim] = past
            kept = start.expand(shape)
        joined = x if kept is None else torch.cat([kept, x], dim)
        size = min(past, joined.shape[dim])
        last = joined.narrow(dim, joined.shape[dim] - size, size)
        self[name] = last.detach()
        return joined.flip(dim) if newest_first else joined


class Part(nn.Module):
    """A part of the codec with its published options and calls.

    Precedes the class of :mod:`speechbrain_focalcodec.modules` in the bases.

    Attributes
    ----------
    defaults : dict
        Published options in their order, with the defaults of v0.0.2.
    config : dict
        The options of this part.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    causal: bool
    output_lengths: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [
            inspect.Parameter(name, kind, default=value)
            for name, value in cls.defaults.items()
        ]
        signature = inspect.Signature(parameters)
        cls.__signature__ = signature  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(type(self)).bind(*args, **kwargs)
        bound.apply_defaults()
        config = bound.arguments
        super().__init__(**config)
        self.config = config
        # In a tuple, so that it is no submodule.
        self.traced: tuple[Any, ...] = ()
        for name, value in config.items():
            if not hasattr(self, name):
                setattr(self, name, value)

    def call(
        self,
        input: torch.Tensor,
        *state: Table,
        length: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Table]:
        """Run the part.

        Arguments
        ---------
        input : torch.Tensor
            Batch [B, T, ...].
        *state : dict
            The state that the call for the previous chunk returned; none for
            the first chunk.
        length : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        output : torch.Tensor
            Batch [B, T', ...], 0 beyond each length.
        state : dict
            State of a causal part for the next chunk, tensors by name.
        """
        lengths = None
        if length is not None:
            lengths = absolute_lengths("length", length, input)
        output, kept, _ = self.run(input, state, lengths)
        return output, kept

    # With another signature than the overridden method.
    forward: Any = call

    def run(
        self,
        x: torch.Tensor,
        state: Sequence[Table] = (),
        lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Table, torch.Tensor | None]:
        """Run the part with absolute lengths, int64 [B].

        `state` is empty or has the state of the previous chunk. Returns the
        output [B, T', ...], the new state and the output's lengths.
        """
        if not isinstance(state, list | tuple) or not all(
            isinstance(kept, dict) for kept in state
        ):
            raise TypeError(
                "a state must be (), [] or what return_state=True gave, got "
                f"{type(state).__name__}; lengths go by name: length=..."
            )
        carried = TensorState(dict(state[0]) if state else None)
        if self.traced and lengths is None:
            y = self.traced[0](x)
        else:
            y = self.compute(x, lengths, carried if self.causal else None)
        if lengths is not None:
            lengths = self.output_lengths(lengths)
            y = zero_beyond(y, lengths)
        return y, carried.table, lengths

    def compute(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None,
        state: TensorState | None,
    ) -> torch.Tensor:
        """Run the class that computes; changes `state` in place."""
        return super().forward(x, lengths, state)

    def trace(self, x: torch.Tensor) -> None:
        """Run as a TorchScript graph from now on, with the present weights.

        `x` is an example [1, T, ...]. Raises RuntimeError if the part cannot be
        traced, or only for inputs of one shape.
        """
        if self.causal:
            raise RuntimeError("it carries state from chunk to chunk")
        with warnings.catch_warnings():
            # Of the tracer, about sizes: checked below.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(_Plain(self), x, check_trace=False)
        longer = torch.cat([x, x[:, 3:]], 1).repeat(2, *[1] * (x.ndim - 1))
        for other in (longer, x[:, : x.shape[1] // 3]):
            want = self.compute(other, None, None)
            try:
                torch.testing.assert_close(traced(other), want)
            except (RuntimeError, AssertionError):
                raise RuntimeError("its graph holds for one shape") from None
        self.traced = (traced,)


class _Plain(nn.Module):
    """A part from tensor to tensor."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part.compute(x, None, None)
