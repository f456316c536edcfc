"""Keeping what was found out about originals."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

__all__ = ["Originals"]

T = TypeVar("T")
# The identity of an utterance: two corpora may use the same names.
Key = tuple[str, int, float]


class Originals(Generic[T]):
    """Computes something of an utterance once, though each codec brings it.

    Arguments
    ---------
    compute : callable
        Gives for a list of waveforms [T] a list of what is to be kept.
    limit : int
        Utterances to keep; those not asked for the longest are forgotten.

    Example
    -------
    >>> lengths = Originals(lambda sigs: [len(sig) for sig in sigs])
    >>> lengths(["a", "b"], [torch.zeros(2), torch.zeros(3)])
    [2, 3]
    """

    def __init__(
        self,
        compute: Callable[[list[torch.Tensor]], list[T]],
        limit: int = 10_000,
    ):
        self.compute = compute
        self.limit = limit
        self.kept: OrderedDict[Key, T] = OrderedDict()

    def __call__(
        self, ids: Sequence[str], sigs: Sequence[torch.Tensor]
    ) -> list[T]:
        """Look up, and compute what is new.

        Arguments
        ---------
        ids : sequence of str
            The utterances' names.
        sigs : sequence of torch.Tensor
            Their waveforms [T].

        Returns
        -------
        list
            One for each.
        """
        keys = [
            (name, len(sig), float(sig.sum()))
            for name, sig in zip(ids, sigs, strict=True)
        ]
        new = {
            key: sig
            for key, sig in zip(keys, sigs, strict=True)
            if key not in self.kept
        }
        if new:
            found = self.compute(list(new.values()))
            self.kept.update(zip(new, found, strict=True))
        values = [self.kept[key] for key in keys]
        for key in keys:
            self.kept.move_to_end(key)
        while len(self.kept) > self.limit:
            self.kept.popitem(last=False)
        return values
