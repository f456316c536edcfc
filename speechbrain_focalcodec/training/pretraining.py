"""Stage "pretraining": a small encoder where there is no WavLM to take.

The releases use WavLM-large. A model of another size, for another language or
for tests needs an encoder of its own; this is a simple way to get one, in the
spirit of WavLM (Chen et al., 2022): the encoder hears speech with gaps, and a
linear layer on its features must tell the log-mel spectrum of all of it.
"""

from typing import Any

import speechbrain as sb
import torch
from torch.nn import functional as F

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.base import CodecBrain
from speechbrain_focalcodec.training.distributed import mean_over_processes
from speechbrain_focalcodec.training.teacher import is_student

__all__ = ["PretrainingBrain", "cut_gaps"]


class PretrainingBrain(CodecBrain):
    """Trains a WavLM encoder with full context.

    Hyperparameters beside those of
    :class:`~speechbrain_focalcodec.training.base.CodecBrain`: ``mel`` (a
    module that gives the log-mel target [B, N, bands] of a waveform, one frame
    a hop of the encoder), ``gap_samples`` and ``gap_share`` (length and share
    of the gaps). The modules have a ``head``, linear from features to bands.
    """

    TRAINED = ("encoder",)

    def prepare_codec(self, codec: FocalCodec, hparams: dict[str, Any]) -> None:
        """Check that there is something to learn.

        Arguments
        ---------
        codec : FocalCodec
            The codec.
        hparams : dict
            The hyperparameters.

        Raises
        ------
        ConfigError
            If the encoder is no WavLM with full context.
        """
        if is_student(codec) or codec.config.encoder_name != "WavLM":
            raise ConfigError(
                f"{codec.name}: PretrainingBrain trains a WavLM with full "
                "context; set encoder_config.causal to False"
            )
        super().prepare_codec(codec, hparams)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hparams.mel.to(self.device)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("head", self.modules["head"])

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        """Tell the spectrum of what has gaps.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms at the codec's input rate.
        stage : sb.Stage
            Gaps are cut in training alone.

        Returns
        -------
        dict
            ``target`` and ``estimate`` [B, N, bands], zero in the padding, and
            ``frames``, int64 [B].
        """
        sig, lengths = self.signals(batch)
        target = self.hparams.mel(sig, lengths)
        if stage == sb.Stage.TRAIN:
            hparams = self.hparams
            sig = cut_gaps(sig, hparams.gap_samples, hparams.gap_share)
        estimate = self.modules.head(self.modules.encoder(sig, lengths))
        frames = self.codec.encoder.output_lengths(lengths)
        target = target[:, : estimate.shape[1]]
        return {
            "target": zero_beyond(target, frames),
            "estimate": zero_beyond(estimate, frames),
            "frames": frames,
        }

    def compute_objectives(
        self, predictions: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Mean absolute error over valid frames.

        Arguments
        ---------
        predictions : dict
            Of :meth:`compute_forward`.
        batch : PaddedBatch
            The batch.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        target, estimate = predictions["target"], predictions["estimate"]
        frames = predictions["frames"]
        if stage != sb.Stage.TRAIN:
            self.keep_sample(
                batch, target=(target, frames), estimate=(estimate, frames)
            )
        error = F.l1_loss(estimate.float(), target, reduction="sum")
        count = frames.sum() * target.shape[-1]
        return mean_over_processes(error / count, count)


def cut_gaps(sig: torch.Tensor, samples: int, share: float) -> torch.Tensor:
    """Silence random spans of waveforms.

    Arguments
    ---------
    sig : torch.Tensor
        Waveforms [B, T].
    samples : int
        Length of a gap.
    share : float
        Share of the samples to silence; less where gaps overlap.

    Returns
    -------
    torch.Tensor
        Waveforms [B, T].

    Example
    -------
    >>> gaps = cut_gaps(torch.ones(1, 1000), samples=50, share=0.3) == 0
    >>> 50 <= gaps.sum() <= 300
    tensor(True)
    """
    batch, total = sig.shape
    count = round(share * total / samples)
    starts = torch.randint(max(total - samples, 1), (batch, count, 1))
    time = torch.arange(total)
    gaps = ((time >= starts) & (time < starts + samples)).any(1)
    return sig.masked_fill(gaps.to(sig.device), 0.0)
