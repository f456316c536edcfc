"""Error of the reconstructed features."""

from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.training.losses import masked_mse
from speechbrain_focalcodec.training.objectives.objective import Objective

__all__ = ["FeatureError"]


class FeatureError(Objective):
    """Mean squared error of the reconstructed features, logged as ``mse``.

    FocalCodec, section 3.4. The target is the compressor's input; if the stage
    trains a streaming encoder, it is the full-context teacher's output.

    Arguments
    ---------
    weight : float
        Weight in the loss.
    """

    needs = frozenset({"feats", "qfeats"})

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor:
        mse = masked_mse(outputs["qfeats"], outputs["feats"], outputs["frames"])
        self.brain.record(mse=mse)
        return self.weight * mse
