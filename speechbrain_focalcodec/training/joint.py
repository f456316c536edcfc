"""Stage "joint": a streaming model up to its features, as one.

FocalCodec-Stream, section 2: encoder, compressor, quantizer and decompressor
learn together, the decompressor now with its refiner, to give the features of
the full-context teacher: what the decoder was trained on.
"""

from typing import Any

import torch

from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.distillation import DistillationBrain
from speechbrain_focalcodec.training.position import StudentBrain
from speechbrain_focalcodec.training.quantizer import QuantizerBrain

__all__ = ["JointBrain"]


class JointBrain(StudentBrain, QuantizerBrain):
    """Trains encoder, compressor and decompressor together.

    Hyperparameters are those of
    :class:`~speechbrain_focalcodec.training.quantizer.QuantizerBrain`.
    ``start_from`` must have all three parts. The decompressor of a quantizer
    stage has no refiner: it begins as one that adds nothing.
    """

    TRAINED = ("encoder", "compressor", "decompressor")
    FROZEN = DistillationBrain.FROZEN

    def required(self, hparams: dict[str, Any]) -> tuple[str, ...]:
        """All that it trains.

        Arguments
        ---------
        hparams : dict
            The hyperparameters.

        Returns
        -------
        tuple of str
            Names of parts.
        """
        del hparams
        return self.TRAINED

    def features(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the student, with gradients.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        feats : torch.Tensor
            Features [B, N, C].
        frames : torch.Tensor
            Frames, int64 [B].
        """
        # Through DDP's wrapper: its gradients are to be shared.
        feats = self.modules.encoder(sig, lengths)
        frames = self.codec.encoder.output_lengths(lengths)
        return zero_beyond(feats, frames), frames

    def target(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor,
        feats: torch.Tensor,
        frames: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the full-context teacher.

        Arguments
        ---------
        sig, lengths
            As for :meth:`features`.
        feats, frames
            What that gave.

        Returns
        -------
        feats : torch.Tensor
            Features [B, N', C]; N' is at most N.
        frames : torch.Tensor
            Frames, int64 [B].
        """
        target, target_frames = self.full_context_features(sig, lengths)
        frames = torch.minimum(frames, target_frames)
        target = target[:, : feats.shape[1]]
        return zero_beyond(target, frames), frames
