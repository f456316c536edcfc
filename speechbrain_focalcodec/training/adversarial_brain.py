"""Brain that trains against modules with an optimizer of their own."""

import math
from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.training.brain import RecipeBrain

__all__ = ["AdversarialBrain"]


class AdversarialBrain(RecipeBrain):
    """A Brain whose ``opponent``, if any, takes a step of its own per batch.

    Arguments are those of
    :class:`~speechbrain_focalcodec.training.brain.RecipeBrain`.
    """

    #: Objective with an optimizer of its own, such as a discriminator's.
    opponent: Any = None
    _active = "generator"

    def fit_batch(self, batch: Any) -> torch.Tensor:
        # As Brain.fit_batch, with its helpers, but for two optimizers.
        opponent = self.opponent
        if opponent is None:
            return super().fit_batch(batch)
        should_step = self.step % self.grad_accumulation_factor == 0
        both = self.optimizer_step >= opponent.warmup
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx, torch.set_grad_enabled(both):
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
            with self.training_ctx:
                loss = opponent.opposing_loss(outputs)
            self._backward(loss)
            if should_step:
                self._step(*opponent.modules)
            with self.training_ctx, torch.set_grad_enabled(both):
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            if both:
                self._backward(loss)
            if both and should_step:
                self._step("generator")
                # Both optimizers together count as one step.
                self.optimizer_step -= 1
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return loss.detach().cpu()

    def _backward(self, loss: torch.Tensor) -> None:
        """Scale, check and differentiate a loss, as Brain.fit_batch does."""
        loss = self.scaler.scale(loss / self.grad_accumulation_factor)
        self.check_loss_isfinite(loss)
        loss.backward()

    def _step(self, name: str) -> None:
        """Unscale, clip and step one optimizer."""
        self._active = name
        self.optimizers_step()

    def freeze_optimizers(self, optimizers: dict[str, Any]) -> dict[str, Any]:
        if self.opponent is None:
            return optimizers
        return {self._active: optimizers[self._active]}

    def init_optimizers(self) -> None:
        opponent = self.opponent
        if opponent is None:
            super().init_optimizers()
            return
        [apart] = opponent.modules
        weights = [
            weight
            for name, module in self.modules.items()
            if name != apart
            for weight in module.parameters()
        ]
        theirs = self.modules[apart].parameters()
        self.optimizers_dict = {
            "generator": self.opt_class(weights),
            apart: opponent.opt_class(theirs),
        }
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(
                    f"optimizer_{name}", optimizer
                )

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        # With a discriminator the last checkpoint is the best: spectral losses
        # do not measure its effect.
        if self.opponent is not None and math.isfinite(loss):
            return -epoch
        return loss
