"""Base class of objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import speechbrain as sb
import torch

if TYPE_CHECKING:
    from speechbrain_focalcodec.training.codec_brain import CodecBrain

__all__ = ["Objective"]


class Objective:
    """A term of a stage's loss.

    A subclass names the outputs of the Brain's forward pass that it needs and
    computes its term from them. The Brain computes only needed outputs, see
    :meth:`~speechbrain_focalcodec.training.codec_brain.CodecBrain\
    .compute_forward`.
    """

    #: Names of the needed outputs; ``"teacher"`` requests ``brain.teacher``,
    #: the full-context encoder of a streaming model.
    needs: frozenset[str] | set[str] = frozenset()
    #: Names of the needed ``modules`` of the YAML. Without them the stage
    #: trains without the objective.
    modules: tuple[str, ...] = ()
    #: Makes the optimizer of these modules if they minimise
    #: :meth:`opposing_loss`. By default they share the codec's optimizer.
    opt_class: Callable[..., torch.optim.Optimizer] | None = None
    #: Number of first steps in which only such modules train.
    warmup: int = 0

    def prepare(self, brain: CodecBrain) -> None:
        """Called once, after the weights are loaded; sets ``self.brain``.

        ``brain.record(name=value)`` logs a term, ``brain.device`` is the
        device.
        """
        self.brain = brain

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor | float:
        """Compute the weighted term of the loss and log its values.

        Arguments
        ---------
        outputs : dict
            Outputs of the Brain's forward pass.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        torch.Tensor or float
            Scalar.
        """
        raise NotImplementedError

    def opposing_loss(self, outputs: dict[str, Any]) -> torch.Tensor:
        """Loss (a scalar) of modules with an optimizer of their own."""
        raise NotImplementedError
