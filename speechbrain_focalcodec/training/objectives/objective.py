"""What an objective is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import speechbrain as sb
import torch

if TYPE_CHECKING:
    from speechbrain_focalcodec.training.codec_brain import CodecBrain

__all__ = ["Objective"]


class Objective:
    """A part of a stage's loss.

    A subclass says which outputs of the Brain's forward pass it needs, and
    computes its share of the loss from them. The Brain computes no others, see
    :meth:`~speechbrain_focalcodec.training.codec_brain.CodecBrain\
.compute_forward`.
    """

    #: Names of the outputs that it needs; ``"teacher"`` stands for the
    #: full-context encoder of a streaming model, ``brain.teacher``.
    needs: frozenset[str] | set[str] = frozenset()
    #: Names of the YAML's ``modules`` that it needs. Without them the stage
    #: trains without the objective.
    modules: tuple[str, ...] = ()
    #: Makes the optimizer of these modules if they train apart, by
    #: :meth:`opposing_loss`. By default they share the codec's optimizer.
    opt_class: Callable[..., torch.optim.Optimizer] | None = None
    #: Steps at the start in which such modules train alone.
    warmup: int = 0

    def prepare(self, brain: CodecBrain) -> None:
        """Called once, when the Brain has its modules and their weights.

        Arguments
        ---------
        brain : CodecBrain
            It is kept as ``self.brain``. ``brain.record(name=value)`` logs a
            term, ``brain.device`` is where tensors are.
        """
        self.brain = brain

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor | float:
        """Compute the objective's share of the loss, and log its terms.

        Arguments
        ---------
        outputs : dict
            Of the Brain's forward pass.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        torch.Tensor or float
            Scalar, already weighted.
        """
        raise NotImplementedError

    def opposing_loss(self, outputs: dict[str, Any]) -> torch.Tensor:
        """Compute the loss of modules that train apart.

        Arguments
        ---------
        outputs : dict
            Of the Brain's forward pass.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        raise NotImplementedError
