"""Losses between the decoded and the original waveform."""

from collections.abc import Mapping
from typing import Any

import speechbrain as sb
import torch
from torch import nn

from speechbrain_focalcodec.training.losses import takes_lengths
from speechbrain_focalcodec.training.objectives.objective import Objective

__all__ = ["WaveformLosses"]


class WaveformLosses(Objective):
    """Weighted sum of waveform losses, such as mel or STFT losses.

    Arguments
    ---------
    losses : dict
        Modules by the name of their term in the logs. Each computes a scalar
        from estimate and target [B, T] and, if its ``forward`` has the
        argument, ``lengths`` in samples, int64 [B]. See
        :mod:`~speechbrain_focalcodec.training.losses` and
        :class:`~speechbrain_focalcodec.training.perceptual.WhisperLoss`.
    weights : dict
        Weights by the same names; other names are ignored.
    """

    needs = frozenset({"estimate"})

    def __init__(
        self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]
    ):
        self.losses = losses
        self.weights = weights

    def prepare(self, brain: Any) -> None:
        super().prepare(brain)
        for loss in self.losses.values():
            loss.to(brain.device)

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor | float:
        terms = {}
        for name, loss in self.losses.items():
            extra = {}
            if takes_lengths(loss):
                extra["lengths"] = outputs["lengths"]
            terms[name] = loss(outputs["estimate"], outputs["target"], **extra)
        self.brain.record(**terms)
        return sum(self.weights[name] * x for name, x in terms.items())
