"""Stage "quantizer": compressor, quantizer and decompressor.

FocalCodec, section 3.4: they learn to reconstruct the features of the frozen
encoder through the bottleneck of bits, by mean squared error and an entropy
loss that makes each bit sure and all codes used. The stage needs no decoder;
given one, validation writes audio.
"""

from typing import Any

import speechbrain as sb
import torch
from torch.nn import functional as F

from speechbrain_focalcodec.audio import resample, resampled_length
from speechbrain_focalcodec.modules.masking import length_mask, zero_beyond
from speechbrain_focalcodec.training.base import CodecBrain
from speechbrain_focalcodec.training.export import load_run
from speechbrain_focalcodec.training.losses import masked_mse

__all__ = ["QuantizerBrain"]


class QuantizerBrain(CodecBrain):
    """Trains compressor and decompressor around the binary quantizer.

    Hyperparameters beside those of
    :class:`~speechbrain_focalcodec.training.base.CodecBrain`:
    ``entropy_weight``, ``diversity_weight``, ``inverse_temperature``, and
    ``decoder_run`` (output folder of a decoder stage to hear validation with,
    or null: then features are drawn).
    """

    TRAINED = ("compressor", "decompressor")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.audible = self.hparams.decoder_run is not None
        if self.audible:
            load_run(self.codec, self.hparams.decoder_run, ["decoder"])
        self._histogram = torch.zeros(
            self.codec.codebook_size, device=self.device
        )

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        """Pass features through the bottleneck.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms at the codec's input rate.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        dict
            ``feats`` and ``qfeats`` [B, T, C], ``frames`` int64 [B],
            ``lats`` [B, N, d], ``tokens`` int64 [B] (their lengths).
        """
        sig, lengths = self.signals(batch, stage)
        codec = self.codec
        with torch.no_grad():
            feats, frames = codec.sig_to_feats(sig, lengths)
        lats = self.modules.compressor(feats, frames)
        lats = F.normalize(lats.float(), dim=-1)
        tokens = codec.compressor.output_lengths(frames)
        codes = codec.quantizer.straight_through(lats)
        qfeats = self.modules.decompressor(codes, tokens)
        # Down-scaling rounds up: up-scaled, there may be frames too many.
        qfeats = zero_beyond(qfeats[:, : feats.shape[1]], frames)
        return {
            "feats": feats,
            "qfeats": qfeats,
            "frames": frames,
            "lats": lats,
            "tokens": tokens,
        }

    def compute_objectives(
        self, predictions: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Reconstruction and entropy.

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
            Scalar; in validation the reconstruction error alone.
        """
        hparams = self.hparams
        mse = masked_mse(
            predictions["qfeats"], predictions["feats"], predictions["frames"]
        )
        lats, tokens = predictions["lats"], predictions["tokens"]
        entropy = self.codec.quantizer.entropy_loss(
            lats,
            tokens,
            hparams.diversity_weight,
            hparams.inverse_temperature,
        )
        self.record(mse=mse, entropy=entropy)
        if stage == sb.Stage.TRAIN:
            return mse + hparams.entropy_weight * entropy
        toks = self.codec.lats_to_toks(lats)
        valid = toks[length_mask(tokens, toks.shape[1])]
        self._histogram += torch.bincount(
            valid, minlength=self.codec.codebook_size
        )
        if len(self._samples) < hparams.num_samples:
            self._keep(batch, predictions)
        return mse

    def _keep(self, batch: Any, predictions: dict[str, Any]) -> None:
        """Keep features and quantized features, decoded if they can be."""
        frames = predictions["frames"]
        if not self.audible:
            self.keep_sample(
                batch,
                features=(predictions["feats"], frames),
                quantized_features=(predictions["qfeats"], frames),
            )
            return
        codec = self.codec
        sig, lengths = self.signals(batch)
        rates = codec.sample_rate_input, codec.sample_rate_output
        self.keep_sample(
            batch,
            original=(resample(sig, *rates), resampled_length(lengths, *rates)),
            unquantized=codec.feats_to_sig(predictions["feats"], frames),
            reconstruction=codec.feats_to_sig(
                predictions["qfeats"].float(), frames
            ),
        )

    def on_stage_start(self, stage, epoch=None):
        """Start counting codes anew.

        Arguments
        ---------
        stage : sb.Stage
            Training, validation or test.
        epoch : int, optional
            The epoch.
        """
        super().on_stage_start(stage, epoch)
        self._histogram.zero_()

    def stage_stats(self) -> dict[str, float]:
        """Share of codes used, and entropy of their use (1 is uniform).

        Returns
        -------
        dict
            ``code_usage`` and ``code_entropy``, both in [0, 1].
        """
        share = self._histogram / self._histogram.sum()
        entropy = torch.special.entr(share).sum()
        size = torch.tensor(float(self.codec.codebook_size))
        return {
            "code_usage": float((share > 0).float().mean()),
            "code_entropy": float(entropy.cpu() / size.log()),
        }
