"""Adversarial training of a decoder against a discriminator."""

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
    """Hinge loss and feature matching of a discriminator.

    FocalCodec, section 3.4. The YAML's ``modules`` have the ``discriminator``,
    which takes waveforms [B, 1, T] and returns lists of scores and of feature
    maps; without it the stage trains without this objective. A discriminator in
    ``start_from`` is trained further. The discriminator and the codec each take
    one step a batch.

    Logged in training: ``adversarial``, ``feature_matching``, and of the
    discriminator ``discriminator`` (its loss), ``score_real``, ``score_fake``
    and ``discriminator_accuracy``.

    Arguments
    ---------
    opt_class : callable
        Makes the discriminator's optimizer.
    weight : float
        Weight of the hinge loss.
    feature_matching_weight : float
        Weight of the distance of feature maps.
    warmup : int
        Steps at the start in which the discriminator trains alone: a new one
        beside a trained decoder would make that worse.
    judged_samples : int, optional
        The discriminator gets a random part of so many samples of each
        utterance, to save time; all by default.
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
            # The discriminator's step rescales in the middle of what the
            # decoder has accumulated.
            raise ConfigError(
                "grad_accumulation_factor > 1 does not go with a "
                "discriminator in fp16: use --precision=bf16 or a larger "
                "batch_size"
            )
        # Without the wrapper of DDP or of a compiler.
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
        """Compute the hinge loss of the discriminator.

        Arguments
        ---------
        outputs : dict
            Of the Brain's forward pass: ``estimate`` and ``target`` [B, T], and
            ``lengths``, int64 [B], where there is padding.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        estimate, target, lengths = self._judged(outputs)
        discriminator = self.brain.modules.discriminator
        fake = _floats(discriminator(estimate.detach())[0])
        real = _floats(discriminator(target)[0])

        def mean(scores: Sequence[torch.Tensor]) -> torch.Tensor:
            """Over discriminators, however many scores each gives."""
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
            # It classifies by the sign.
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
        """Estimate and target for the discriminator, [B, 1, T].

        And their lengths, where there is padding.
        """
        if "judged" in outputs:
            return outputs["judged"]
        estimate, target = outputs["estimate"], outputs["target"]
        lengths, size = outputs.get("lengths"), self.judged_samples
        if size is not None and size < target.shape[1]:
            # Within each utterance: from padding, which is the same in both, it
            # learns nothing. It is drawn by torch's own generator: processes
            # draw apart (seed_apart), a resumed run as it would have
            # (RandomState).
            starts = random_starts(outputs["lengths"], size)
            estimate = take_windows(estimate, starts, size)
            target = take_windows(target, starts, size)
        if lengths is not None:
            lengths = lengths.clamp(max=target.shape[1])
            if bool((lengths == target.shape[1]).all()):
                lengths = None
        # Both losses judge the same part.
        outputs["judged"] = estimate[:, None], target[:, None], lengths
        return outputs["judged"]


def _over_processes(
    sig: torch.Tensor, lengths: torch.Tensor | None, *means: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """From means over waveforms [B, 1, T] here, those of all processes."""
    weight = sig.numel() if lengths is None else lengths.sum()
    return mean_over_processes(torch.stack(means), weight).unbind()


def _floats(scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Scores in float32.

    A loss in autocast's types has too few digits to show that it falls, and
    in fp16 its gradient, a GradScaler's first scale, would be infinite.
    """
    return [score.float() for score in scores]


def _mean(
    x: torch.Tensor, sig: torch.Tensor, lengths: torch.Tensor | None
) -> torch.Tensor:
    """Mean of scores [B, N] or maps [B, C, N, ...] of waveforms [B, 1, T].

    The share of the N steps that lies beyond a waveform's length does not
    count.
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
