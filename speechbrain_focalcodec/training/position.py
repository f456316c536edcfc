"""Stage "position": the position embedding of a streaming encoder.

FocalCodec-Stream, section 2: WavLM adds to its frames a convolution over 128
of them, half of them in the future. A causal convolution learns to give the
same from the past, by mean squared error, before the rest of the encoder is
touched.
"""

from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.base import CodecBrain
from speechbrain_focalcodec.training.losses import masked_mse
from speechbrain_focalcodec.training.teacher import (
    frames_before_position,
    is_student,
)

__all__ = ["PositionBrain", "StudentBrain"]


class StudentBrain(CodecBrain):
    """What the stages that train a causal encoder share.

    Hyperparameters are those of
    :class:`~speechbrain_focalcodec.training.base.CodecBrain`; the encoder must
    be a causal WavLM, and ``encoder_source`` gives its teacher.
    """

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
            If the encoder is no causal WavLM.
        """
        if not is_student(codec):
            raise ConfigError(
                f"{type(self).__name__} trains a causal WavLM; the encoder of "
                f"{codec.name} is none: take a streaming model, such as "
                "hparams/model/focalcodec_50hz_4k_causal.yaml"
            )
        super().prepare_codec(codec, hparams)

    def needs_teacher(self, hparams: dict[str, Any]) -> bool:
        """Always.

        Arguments
        ---------
        hparams : dict
            The hyperparameters.

        Returns
        -------
        bool
            True.
        """
        del hparams
        return True

    def compare(
        self,
        batch: Any,
        estimate: torch.Tensor,
        target: torch.Tensor,
        frames: torch.Tensor,
    ) -> None:
        """Keep samples of validation, and log what the student misses.

        Arguments
        ---------
        batch : PaddedBatch
            The batch.
        estimate, target : torch.Tensor
            What student and teacher give [B, N, C], zero in the padding.
        frames : torch.Tensor
            Frames, int64 [B].
        """
        self.keep_sample(
            batch, teacher=(target, frames), student=(estimate, frames)
        )
        nothing = masked_mse(torch.zeros_like(target), target, frames)
        # A share: 1 is what zeros would give.
        self.record(share=masked_mse(estimate, target, frames) / nothing)


class PositionBrain(StudentBrain):
    """Distils the position embedding."""

    TRAINED = ("positional_embedding",)

    def compute_forward(
        self, batch: Any, stage: sb.Stage
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embed the teacher's frames twice.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms at the codec's input rate.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        estimate, target : torch.Tensor
            Embeddings [B, N, C] of student and teacher, zero in the padding.
        frames : torch.Tensor
            Frames, int64 [B].
        """
        sig, lengths = self.signals(batch)
        with torch.no_grad():
            x, frames = frames_before_position(self.teacher, sig, lengths)
            target = self.teacher.encoder.positional_embedding(x)
        estimate = self.modules.positional_embedding(x)
        return (
            zero_beyond(estimate, frames),
            zero_beyond(target, frames),
            frames,
        )

    def compute_objectives(
        self, predictions: Any, batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Mean squared error.

        Arguments
        ---------
        predictions : tuple
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
        estimate, target, frames = predictions
        if stage != sb.Stage.TRAIN:
            self.compare(batch, estimate, target, frames)
        return masked_mse(estimate, target, frames)
