"""Entropy loss of the quantizer."""

from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.training.distributed import sum_over_processes
from speechbrain_focalcodec.training.objectives.objective import Objective

__all__ = ["Entropy"]


class Entropy(Objective):
    """Entropy loss of the quantizer (FocalCodec, section 3.4).

    Makes each assignment certain and the use of the codes uniform. Logged as
    ``entropy``, over the batch of all processes. Not part of the validation
    loss.

    Arguments
    ---------
    weight : float
        Weight in the loss.
    diversity_weight : float
        Weight of the entropy of the mean assignment, which is maximised.
    inverse_temperature : float
        Inverse temperature of the soft assignment of latents to codes.
    """

    needs = frozenset({"lats"})

    def __init__(
        self,
        weight: float = 0.1,
        diversity_weight: float = 1.0,
        inverse_temperature: float = 100.0,
    ):
        self.weight = weight
        self.diversity_weight = diversity_weight
        self.inverse_temperature = inverse_temperature

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor | float:
        entropy = self.brain.codec.quantizer.entropy_loss(
            outputs["lats"],
            outputs["tokens"],
            self.diversity_weight,
            self.inverse_temperature,
            total=sum_over_processes,
        )
        self.brain.record(entropy=entropy)
        return self.weight * entropy if stage == sb.Stage.TRAIN else 0.0
