"""Cache of results for originals."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

__all__ = ["Originals"]

T = TypeVar("T")
# Id, length and sum: two corpora may use the same ids.
Key = tuple[str, int, float]


class Originals(Generic[T]):
    """Computes a value of an original once for all codecs.

    `compute` returns the values of a list of waveforms [T]. At most `limit`
    values are kept; the least recently used ones are dropped.
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
        """Values of the utterances, computed if they are new."""
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
