"""Distance of log-mel spectrograms."""

import math
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.metrics.base import Column, Sample, ScoreMetric
from speechbrain_focalcodec.modules.mel import LogMel

__all__ = ["MelDistance"]


class MelDistance(ScoreMetric):
    """Mean absolute difference of log-mel spectrograms in dB.

    The spectrogram is that of
    :class:`~speechbrain_focalcodec.modules.mel.LogMel`: magnitudes of 80
    bands, 64 ms windows every 20 ms, with a floor of 1e-3.

    Arguments
    ---------
    device : str
        Device to run on.
    """

    name = "mel"
    columns = (
        Column("mel_distance", "Mel distance (dB)", "lower", "mel_distance"),
    )

    def __init__(self, device: str = "cpu"):
        # Without normalisation.
        self.log_mel = LogMel(mean=0.0, std=1.0).to(device)
        self.device = device

    @torch.inference_mode()
    def scores(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        lengths = torch.tensor(
            [len(sample.original) for sample in samples], device=self.device
        )
        original, output = (
            self.log_mel(
                pad_sequence(sigs, batch_first=True).to(self.device), lengths
            )
            for sigs in (
                [sample.original for sample in samples],
                [sample.output for sample in samples],
            )
        )
        distances = (original - output).abs().mean(2) * (20 / math.log(10))
        frames = self.log_mel.output_lengths(lengths).tolist()
        return [
            distance[:length].mean()
            for distance, length in zip(distances, frames, strict=True)
        ]
