"""Adversarial training of a decoder with a discriminator."""

from collections.abc import Callable, Sequence
from typing import Any

import speechbrain as sb
import torch
from torch.nn import functional as F

from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.masking import length_mask
from speechbrain_focalcodec.training.distributed import mean_over_processes
from speechbrain_focalcodec.training.objectives.objective import Objective
from speechbrain_focalcodec.training.segments import random_starts, take_windows
from speechbrain_focalcodec.training.sources import load_module

__all__ = ["Adversarial"]


class Adversarial(Objective):
    """Hinge loss and feature matching loss (FocalCodec, section 3.4).

    The YAML's ``modules`` contain the ``discriminator``, which maps waveforms
    [B, 1, T] to lists of scores and of feature maps. Without it the stage
    trains without this objective. A discriminator in ``start_from`` is loaded.
    Discriminator and codec take one step each per batch.

    Logged in training: ``adversarial``, ``feature_matching``,
    ``discriminator`` (the discriminator's loss), ``score_real``,
    ``score_fake`` and ``discriminator_accuracy``.

    Arguments
    ---------
    opt_class : callable
        Makes the discriminator's optimizer.
    weight : float
        Weight of the hinge loss.
    feature_matching_weight : float
        Weight of the feature matching loss.
    warmup : int
        Number of first steps in which only the discriminator trains. A new
        discriminator would degrade a trained decoder.
    judged_samples : int, optional
        Length of the random part of each utterance that the discriminator
        judges; the whole utterance by default.
    """

    needs = frozenset({"estimate"})
    modules = ("discriminator",)

    def __init__(
        self,
        opt_class: Callable[..., torch.optim.Optimizer] | None,
        weight: float = 1.0,
        feature_matching_weight: float = 1.0,
        warmup: int = 0,
        judged_samples: int | None = None,
    ):
        self.opt_class = opt_class
        self.weight = weight
        self.feature_matching_weight = feature_matching_weight
        self.warmup = warmup
        self.judged_samples = judged_samples

    def prepare(self, brain: Any) -> None:
        super().prepare(brain)
        if brain.scaler.is_enabled() and brain.grad_accumulation_factor > 1:
            # The discriminator's step would rescale between the decoder's
            # accumulated gradients.
            raise ConfigError(
                "grad_accumulation_factor > 1 does not go with a "
                "discriminator in fp16: use --precision=bf16 or a larger "
                "batch_size"
            )
        # Without DDP's or a compiler's wrapper.
        self.discriminator = brain.modules.discriminator
        load_module(self.discriminator, brain.sources)

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor | float:
        if stage != sb.Stage.TRAIN:
            return 0.0
        discriminator = self.discriminator
        discriminator.requires_grad_(False)
        estimate, target, lengths = self._judged(outputs)
        fake, fake_maps = discriminator(estimate)
        with torch.no_grad():
            _, real_maps = discriminator(target)
        discriminator.requires_grad_(True)
        hinges = [
            _mean(F.relu(1 - x), estimate, lengths) for x in _floats(fake)
        ]
        distances = [
            _mean((x - y).abs(), estimate, lengths)
            for maps in zip(fake_maps, real_maps, strict=True)
            for x, y in zip(*maps, strict=True)
        ]
        adversarial, matching = _over_processes(
            estimate,
            lengths,
            torch.stack(hinges).sum(),
            torch.stack(distances).mean(),
        )
        self.brain.record(adversarial=adversarial, feature_matching=matching)
        return (
            self.weight * adversarial + self.feature_matching_weight * matching
        )

    def opposing_loss(self, outputs: dict[str, Any]) -> torch.Tensor:
        """Hinge loss of the discriminator, from the Brain's outputs."""
        estimate, target, lengths = self._judged(outputs)
        discriminator = self.brain.modules.discriminator
        fake = _floats(discriminator(estimate.detach())[0])
        real = _floats(discriminator(target)[0])

        def mean(scores: Sequence[torch.Tensor]) -> torch.Tensor:
            """Mean over discriminators with any number of scores each."""
            return torch.stack(
                [_mean(x, estimate, lengths) for x in scores]
            ).mean()

        hinges = [F.relu(1 - x) for x in real] + [F.relu(1 + x) for x in fake]
        loss, score_real, score_fake = _over_processes(
            estimate,
            lengths,
            mean(hinges) * len(hinges),
            mean(real),
            mean(fake),
        )
        self.brain.record(
            discriminator=loss,
            score_real=score_real,
            score_fake=score_fake,
            # The discriminator classifies by the sign.
            discriminator_accuracy=0.5
            * (
                mean([(x > 0).float() for x in real])
                + mean([(x < 0).float() for x in fake])
            ),
        )
        return loss

    def _judged(
        self, outputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Estimate and target [B, 1, T], and lengths if there is padding."""
        if "judged" in outputs:
            return outputs["judged"]
        estimate, target = outputs["estimate"], outputs["target"]
        lengths, size = outputs.get("lengths"), self.judged_samples
        if size is not None and size < target.shape[1]:
            # Windows lie within the utterances: padding is the same in both.
            # torch's generator differs between processes and is resumed.
            starts = random_starts(outputs["lengths"], size)
            estimate = take_windows(estimate, starts, size)
            target = take_windows(target, starts, size)
        if lengths is not None:
            lengths = lengths.clamp(max=target.shape[1])
            if bool((lengths == target.shape[1]).all()):
                lengths = None
        # Both losses use the same windows.
        outputs["judged"] = estimate[:, None], target[:, None], lengths
        return outputs["judged"]


def _over_processes(
    sig: torch.Tensor, lengths: torch.Tensor | None, *means: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Means over all processes from means over waveforms [B, 1, T] here."""
    weight = sig.numel() if lengths is None else lengths.sum()
    return mean_over_processes(torch.stack(means), weight).unbind()


def _floats(scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Scores in float32: autocast's types are too coarse for the loss."""
    return [score.float() for score in scores]


def _mean(
    x: torch.Tensor, sig: torch.Tensor, lengths: torch.Tensor | None
) -> torch.Tensor:
    """Mean of scores [B, N] or maps [B, C, N, ...] of waveforms [B, 1, T].

    Of the N steps, those that correspond to padding do not count.
    """
    if lengths is None:
        return x.mean()
    axis = 1 if x.ndim == 2 else 2
    steps = x.shape[axis]
    valid = length_mask(-(-lengths * steps // sig.shape[-1]), steps)
    shape = [len(x), *[1] * (x.ndim - 1)]
    shape[axis] = steps
    valid = valid.reshape(shape).expand_as(x)
    return torch.where(valid, x, 0).sum() / valid.sum()
