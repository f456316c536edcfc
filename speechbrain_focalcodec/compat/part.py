"""How the published parts are made and called.

They take their options in a fixed order, and are called as
``output, *state = part(input, *state)``. What they compute is inherited from
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
    """A stream's state in plain tensors that are never written to.

    So a state may be used again, as in the published package: each call
    leaves the state that it was given as it was.

    Example
    -------
    >>> state = TensorState({"keys": torch.zeros(1, 2)})
    >>> before = dict(state.table)
    >>> state.append("keys", torch.ones(1, 3), past=2)
    tensor([[0., 0., 1., 1., 1.]])
    >>> state.table, before
    ({'keys': tensor([[1., 1.]])}, {'keys': tensor([[0., 0.]])})
    """

    def scope(self, name: str) -> "TensorState":
        """See :meth:`StreamState.scope`.

        Arguments
        ---------
        name : str
            The part's name.

        Returns
        -------
        TensorState
            A view; what is stored in it is stored here.
        """
        prefix = f"{self.prefix}{name}."
        return TensorState(self.table, prefix, self.scratch)

    def append(
        self,
        name: str,
        x: torch.Tensor,
        past: int,
        dim: int = 1,
        newest_first: bool = False,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See :meth:`StreamState.append`.

        Arguments
        ---------
        name, x, past, dim, newest_first, start
            See :meth:`StreamState.append`.

        Returns
        -------
        torch.Tensor
            The new steps with up to `past` before them.
        """
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

    Comes before the class of :mod:`speechbrain_focalcodec.modules` that
    computes.

    Attributes
    ----------
    defaults : dict
        Published options in their order, with the defaults of v0.0.2.
    config : dict
        The options that this part was made with.
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
        # In a tuple: no part of the weights.
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
            What the call for the chunk before gave after its output; nothing
            for the first chunk.
        length : torch.Tensor, optional
            Relative lengths, float [B] in (0, 1].

        Returns
        -------
        output : torch.Tensor
            Batch [B, T', ...], 0 beyond each length.
        state : dict
            What a causal part carries to the next chunk, tensors by name.
        """
        lengths = None
        if length is not None:
            lengths = absolute_lengths("length", length, input)
        output, kept, _ = self.run(input, state, lengths)
        return output, kept

    # It takes other arguments than what it hides.
    forward: Any = call

    def run(
        self,
        x: torch.Tensor,
        state: Sequence[Table] = (),
        lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Table, torch.Tensor | None]:
        """Run the part with absolute lengths.

        Arguments
        ---------
        x : torch.Tensor
            Batch [B, T, ...].
        state : sequence of dict
            Empty, or what :meth:`call` gave after its output.
        lengths : torch.Tensor, optional
            Steps, int64 [B].

        Returns
        -------
        output : torch.Tensor
            Batch [B, T', ...].
        state : dict
            Tensors by name; empty unless the part is causal.
        lengths : torch.Tensor or None
            Steps of the output, int64 [B].

        Raises
        ------
        TypeError
            If `state` is none.
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
        """Run the class that computes.

        Arguments
        ---------
        x : torch.Tensor
            Batch [B, T, ...].
        lengths : torch.Tensor, optional
            Steps, int64 [B].
        state : TensorState, optional
            Is changed.

        Returns
        -------
        torch.Tensor
            Batch [B, T', ...].
        """
        return super().forward(x, lengths, state)

    def trace(self, x: torch.Tensor) -> None:
        """Run as a TorchScript graph from now on, with the present weights.

        Arguments
        ---------
        x : torch.Tensor
            An example [1, T, ...].

        Raises
        ------
        RuntimeError
            If the part cannot be traced, or only for inputs of one shape.
        """
        if self.causal:
            raise RuntimeError("it carries state from chunk to chunk")
        with warnings.catch_warnings():
            # Of the tracer, about sizes: the check below decides.
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
