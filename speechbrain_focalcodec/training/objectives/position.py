"""Error of a streaming encoder's position embedding."""

from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.losses import masked_mse
from speechbrain_focalcodec.training.objectives.objective import Objective
from speechbrain_focalcodec.training.teacher import frames_before_position

__all__ = ["PositionError", "compare"]


class PositionError(Objective):
    """Mean squared error of the position embedding to the teacher's.

    FocalCodec-Stream, section 2. WavLM's position embedding is a convolution
    over 128 frames, half of them in the future. The causal convolution is
    trained to match it before the rest of the encoder.
    """

    needs = frozenset({"sig", "teacher"})

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor:
        brain = self.brain
        with torch.no_grad():
            x, frames = frames_before_position(
                brain.teacher, outputs["sig"], outputs["sig_lengths"]
            )
            target = brain.teacher.encoder.positional_embedding(x)
        estimate = brain.modules.positional_embedding(x)
        estimate = zero_beyond(estimate, frames)
        target = zero_beyond(target, frames)
        if stage != sb.Stage.TRAIN:
            compare(brain, outputs["ids"], estimate, target, frames)
        return masked_mse(estimate, target, frames)


def compare(
    brain: Any,
    ids: list[str],
    estimate: torch.Tensor,
    target: torch.Tensor,
    frames: torch.Tensor,
) -> None:
    """Keep samples of student and teacher, and log the relative error.

    Their outputs [B, N, C] are zero in the padding; frames are int64 [B].
    """
    brain.keep_sample(ids, teacher=(target, frames), student=(estimate, frames))
    # The error relative to that of zeros.
    zeros = masked_mse(torch.zeros_like(target), target, frames)
    brain.record(share=masked_mse(estimate, target, frames) / zeros)
