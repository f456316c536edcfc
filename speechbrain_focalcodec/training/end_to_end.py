"""Stage "end_to_end": from features to the waveform, through the bits.

After the stages of the paper, compressor, decompressor and decoder go on as
one: what the bits keep is no longer decided by the features' squared error
alone but by how the speech sounds. The gradient passes the quantizer straight
through.
"""

from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.audio.files import resample, resampled_length
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.decoder import DecoderBrain
from speechbrain_focalcodec.training.quantizer import QuantizerBrain

__all__ = ["EndToEndBrain"]


class EndToEndBrain(DecoderBrain, QuantizerBrain):
    """Trains compressor, decompressor and decoder together.

    Hyperparameters are those of
    :class:`~speechbrain_focalcodec.training.decoder.DecoderBrain` and of
    :class:`~speechbrain_focalcodec.training.quantizer.QuantizerBrain`.
    ``dequantized`` and ``segment_frames`` mean nothing here; ``loss_weights``
    has one more: ``feats``, of the features' mean squared error, which keeps
    the decompressor giving features of the encoder (voice conversion and
    other decoders need them). ``start_from`` must have all three parts. To
    leave the tokens as they are, ``freeze: [compressor]``.
    """

    TRAINED = ("compressor", "decompressor", "decoder")
    TAKES_FEATURES = False
    HEARS_OUTPUT = True

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

    def needs_teacher(self, hparams: dict[str, Any]) -> bool:
        """Not here: the features are the student's.

        Arguments
        ---------
        hparams : dict
            The hyperparameters.

        Returns
        -------
        bool
            False.
        """
        return QuantizerBrain.needs_teacher(self, hparams)

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        """Reconstruct the batch.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms at the codec's output rate.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        dict
            What both of its Brains predict.
        """
        sig, lengths = self.signals(batch)
        codec = self.codec
        rates = codec.sample_rate_output, codec.sample_rate_input
        with torch.no_grad():
            feats, frames = codec.sig_to_feats(
                resample(sig, *rates), resampled_length(lengths, *rates)
            )
        predictions = self.bottleneck(feats, frames, feats, frames)
        qfeats = zero_beyond(predictions["qfeats"], frames)
        return predictions | self.decode(qfeats, frames, sig, lengths)

    def compute_objectives(
        self, predictions: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Losses of the waveform and of the bottleneck.

        Arguments
        ---------
        predictions : dict
            Of :meth:`compute_forward`.
        batch : PaddedBatch
            The batch.
        stage : sb.Stage
            The adversarial terms and the entropy count in training alone.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        loss = super().compute_objectives(predictions, batch, stage)
        mse, entropy = self.bottleneck_losses(predictions)
        loss = loss + self.hparams.loss_weights["feats"] * mse
        if stage == sb.Stage.TRAIN:
            loss = loss + self.hparams.entropy_weight * entropy
        return loss
