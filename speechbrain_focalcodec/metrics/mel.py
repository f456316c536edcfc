"""Distance of log-mel spectrograms."""

import math
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.metrics.base import Column, Metric, Row, Sample
from speechbrain_focalcodec.metrics.values import as_figure, is_measurable
from speechbrain_focalcodec.modules.mel import LogMel

__all__ = ["MelDistance"]


class MelDistance(Metric):
    """Mean absolute difference of log-mel spectrograms, in dB.

    The spectrogram is that of
    :class:`~speechbrain_focalcodec.modules.mel.LogMel`: 80 bands of
    magnitudes, 64 ms windows every 20 ms. What lies below its floor, 1e-3,
    counts as equal.

    Arguments
    ---------
    device : str
        Where it is computed.

    Example
    -------
    >>> sig = torch.randn(16000, generator=torch.manual_seed(0))
    >>> [row] = MelDistance()([Sample("a", 9 * sig, 0.9 * sig)])
    >>> round(row["mel_distance"])
    20
    """

    name = "mel"
    columns = (
        Column("mel_distance", "Mel distance (dB)", "lower", "mel_distance"),
    )

    def __init__(self, device: str = "cpu"):
        # Its logarithm, without the normalisation.
        self.log_mel = LogMel(mean=0.0, std=1.0).to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        rows: list[Row] = [{"mel_distance": None} for _ in samples]
        kept = [
            (row, sample)
            for row, sample in zip(rows, samples, strict=True)
            if is_measurable(sample.original, sample.output)
        ]
        if not kept:
            return rows
        lengths = torch.tensor(
            [len(sample.original) for _, sample in kept], device=self.device
        )
        mels = [
            self.log_mel(
                pad_sequence(sigs, batch_first=True).to(self.device), lengths
            )
            for sigs in (
                [sample.original for _, sample in kept],
                [sample.output for _, sample in kept],
            )
        ]
        distances = (mels[0] - mels[1]).abs().mean(2) * (20 / math.log(10))
        frames = self.log_mel.output_lengths(lengths)
        for (row, _), distance, length in zip(
            kept, distances, frames.tolist(), strict=True
        ):
            row["mel_distance"] = as_figure(distance[:length].mean())
        return rows
