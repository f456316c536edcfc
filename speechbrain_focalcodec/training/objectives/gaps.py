"""Pretraining of an encoder on speech with gaps."""

from typing import Any

import speechbrain as sb
import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.distributed import mean_over_processes
from speechbrain_focalcodec.training.objectives.objective import Objective
from speechbrain_focalcodec.training.teacher import is_student

__all__ = ["GapFilling", "cut_gaps"]


class GapFilling(Objective):
    """Mean absolute error of a log-mel spectrogram predicted from features.

    The releases use WavLM-large. This objective is a simple way to pretrain an
    encoder of another size or language, similar to WavLM (Chen et al., 2022):
    the encoder's input has gaps, and a linear layer ``head`` in the YAML's
    ``modules`` predicts the spectrogram of the input without gaps.

    Arguments
    ---------
    mel : nn.Module
        Computes the log-mel target [B, N, bands] of a waveform, one frame per
        hop of the encoder.
    gap_samples : int
        Length of a gap.
    gap_share : float
        Share of the samples in gaps, in training.
    """

    needs = frozenset({"sig"})
    modules = ("head",)

    def __init__(self, mel: nn.Module, gap_samples: int, gap_share: float):
        self.mel: Any = mel
        self.gap_samples = gap_samples
        self.gap_share = gap_share

    def prepare(self, brain: Any) -> None:
        super().prepare(brain)
        codec = brain.codec
        if is_student(codec) or codec.config.encoder_name != "WavLM":
            raise ConfigError(
                f"{codec.name}: pretraining takes a WavLM with full context; "
                "set encoder_config.causal to False"
            )
        self.mel.to(brain.device)

    def __call__(
        self, outputs: dict[str, Any], stage: sb.Stage
    ) -> torch.Tensor:
        modules = self.brain.modules
        sig, lengths = outputs["sig"], outputs["sig_lengths"]
        target = self.mel(sig, lengths)
        if stage == sb.Stage.TRAIN:
            sig = cut_gaps(sig, self.gap_samples, self.gap_share)
        estimate = modules.head(modules.encoder(sig, lengths))
        frames = self.brain.codec.encoder.output_lengths(lengths)
        target = zero_beyond(target[:, : estimate.shape[1]], frames)
        estimate = zero_beyond(estimate, frames)
        if stage != sb.Stage.TRAIN:
            self.brain.keep_sample(
                outputs["ids"],
                target=(target, frames),
                estimate=(estimate, frames),
            )
        error = F.l1_loss(estimate.float(), target, reduction="sum")
        count = frames.sum() * target.shape[-1]
        return mean_over_processes(error / count, count)


def cut_gaps(sig: torch.Tensor, samples: int, share: float) -> torch.Tensor:
    """Set random spans of waveforms [B, T] to zero.

    `samples` is the length of a span, `share` the share of samples in spans;
    less where spans overlap.
    """
    batch, total = sig.shape
    count = round(share * total / samples)
    starts = torch.randint(max(total - samples, 1), (batch, count, 1))
    time = torch.arange(total)
    gaps = ((time >= starts) & (time < starts + samples)).any(1)
    return sig.masked_fill(gaps.to(sig.device, non_blocking=True), 0.0)
