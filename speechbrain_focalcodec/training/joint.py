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
    TAKES_FEATURES = False

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

    def inputs(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """Features of the student, with gradients, and of its teacher.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms.

        Returns
        -------
        feats : torch.Tensor
            The student's features [B, N, C].
        frames : torch.Tensor
            Frames, int64 [B].
        target : torch.Tensor
            The teacher's features [B, N', C]; N' is at most N.
        target_frames : torch.Tensor
            Frames, int64 [B].
        """
        sig, lengths = self.signals(batch)
        # Through DDP's wrapper: its gradients are to be shared.
        feats = self.modules.encoder(sig, lengths)
        frames = self.codec.encoder.output_lengths(lengths)
        target, target_frames = self.full_context_features(sig, lengths)
        target = target[:, : feats.shape[1]]
        target_frames = torch.minimum(frames, target_frames)
        return (
            zero_beyond(feats, frames),
            frames,
            zero_beyond(target, target_frames),
            target_frames,
        )
