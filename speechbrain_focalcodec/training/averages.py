"""Averages over an epoch that survive a resume within it."""

import json

from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

__all__ = ["Averages"]


@register_checkpoint_hooks
class Averages:
    """Running means of named values.

    Example
    -------
    >>> averages = Averages()
    >>> averages.add("mse", 1.0)
    >>> averages.add("mse", 2.0)
    >>> averages.means()
    {'mse': 1.5}
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, int]] = {}

    def add(self, name: str, value: float) -> None:
        """Count a value in.

        Arguments
        ---------
        name : str
            What is averaged.
        value : float
            The value.
        """
        total, count = self._values.get(name, (0.0, 0))
        self._values[name] = (total + value, count + 1)

    def means(self) -> dict[str, float]:
        """The means so far.

        Returns
        -------
        dict
            By name.
        """
        return {
            name: total / count for name, (total, count) in self._values.items()
        }

    def clear(self) -> None:
        """Start anew."""
        self._values.clear()

    @mark_as_saver
    def _save(self, path):
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(self._values, stream)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        del end_of_epoch
        with open(path, encoding="utf-8") as stream:
            values = json.load(stream)
        self._values = {name: tuple(pair) for name, pair in values.items()}
