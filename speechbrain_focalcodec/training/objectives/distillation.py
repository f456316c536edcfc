"""Distillation of a streaming encoder from its full-context teacher."""

from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.losses import masked_mse
from speechbrain_focalcodec.training.objectives.objective import Objective
from speechbrain_focalcodec.training.objectives.position import compare
from speechbrain_focalcodec.training.teacher import LayerOutputs

__all__ = ["LayerDistillation"]


class LayerDistillation(Objective):
    """Mean over layers of weighted errors to the teacher's layer outputs.

    FocalCodec-Stream, section 2. Layer i is logged as ``mse_i``.

    Arguments
    ---------
    first_layer_weight, last_layer_weight : float
        Weights of the first and the last layer; evenly spaced between.
    """

    needs = frozenset({"sig", "teacher"})

    def __init__(
        self, first_layer_weight: float = 0.5, last_layer_weight: float = 1.0
    ):
        self.first_layer_weight = first_layer_weight
        self.last_layer_weight = last_layer_weight

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor:
        brain = self.brain
        sig, lengths = outputs["sig"], outputs["sig_lengths"]
        student, teacher = brain.codec.encoder, brain.teacher
        with torch.no_grad(), LayerOutputs(teacher) as targets:
            teacher(sig, lengths)
        with LayerOutputs(student) as estimates:
            # Through DDP's wrapper, which averages gradients.
            brain.modules.encoder(sig, lengths)
        # The causal student may have one frame more than the teacher.
        frames = torch.minimum(
            teacher.output_lengths(lengths), student.output_lengths(lengths)
        )
        n = min(targets[-1].shape[1], estimates[-1].shape[1])
        pairs = [
            (zero_beyond(x[:, :n], frames), zero_beyond(y[:, :n], frames))
            for x, y in zip(estimates, targets, strict=True)
        ]
        errors = [masked_mse(x, y, frames) for x, y in pairs]
        brain.record(**{f"mse_{i}": x for i, x in enumerate(errors, start=1)})
        if stage != sb.Stage.TRAIN:
            compare(brain, outputs["ids"], *pairs[-1], frames)
        weights = torch.linspace(
            self.first_layer_weight,
            self.last_layer_weight,
            len(errors),
            device=sig.device,
        )
        return (weights * torch.stack(errors)).mean()
