"""Stage "quantizer": compressor, quantizer and decompressor.

FocalCodec, section 3.4: they learn to reconstruct the features of the frozen
encoder through the bottleneck of bits, by mean squared error and an entropy
loss that makes each bit sure and all codes used. The stage needs no decoder;
given one, validation writes audio.
"""

from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.audio.files import resample, resampled_length
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.modules.bsq import to_sphere
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.averages import CodeCounts
from speechbrain_focalcodec.training.base import CodecBrain
from speechbrain_focalcodec.training.distributed import sum_over_processes
from speechbrain_focalcodec.training.losses import masked_mse
from speechbrain_focalcodec.training.surgery import remove_refiner

__all__ = ["QuantizerBrain"]


class QuantizerBrain(CodecBrain):
    """Trains compressor and decompressor around the binary quantizer.

    Hyperparameters beside those of
    :class:`~speechbrain_focalcodec.training.base.CodecBrain`:
    ``entropy_weight``, ``diversity_weight``, ``inverse_temperature`` and
    ``refine``: whether a causal decompressor's refiner is trained (a streaming
    model gets it in its joint stage). With a decoder in ``start_from``
    validation is heard, without one features are drawn. The features of a
    causal WavLM are the student's.
    """

    TRAINED: tuple[str, ...] = ("compressor", "decompressor")
    NEEDS_STUDENT = True
    TAKES_FEATURES = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.audible = "decoder" in self.loaded
        self.code_counts = CodeCounts(self.codec.codebook_size, self.device)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable(
                "code_counts", self.code_counts, optional_load=True
            )

    def prepare_codec(self, codec: FocalCodec, hparams: dict[str, Any]) -> None:
        """Take the refiner out where it is not trained.

        Arguments
        ---------
        codec : FocalCodec
            The codec.
        hparams : dict
            The hyperparameters.
        """
        super().prepare_codec(codec, hparams)
        if not hparams["refine"]:
            remove_refiner(codec)

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
        del hparams
        return False

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        """Pass features through the bottleneck.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms at the codec's input rate, or cached features.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        dict
            ``feats`` (what shall be reconstructed) and ``qfeats`` [B, T, C],
            ``frames`` int64 [B], ``lats`` [B, N, d], ``tokens`` int64 [B]
            (their lengths).
        """
        return self.bottleneck(*self.inputs(batch))

    def bottleneck(
        self,
        feats: torch.Tensor,
        frames: torch.Tensor,
        target: torch.Tensor,
        target_frames: torch.Tensor,
    ) -> dict[str, Any]:
        """Compress, quantize and decompress features.

        Arguments
        ---------
        feats : torch.Tensor
            Features [B, N, C].
        frames : torch.Tensor
            Frames, int64 [B].
        target : torch.Tensor
            What the decompressor shall give [B, T, C].
        target_frames : torch.Tensor
            Frames, int64 [B].

        Returns
        -------
        dict
            As of :meth:`compute_forward`.
        """
        codec = self.codec
        lats = to_sphere(self.modules.compressor(feats, frames))
        tokens = codec.compressor.output_lengths(frames)
        codes = codec.quantizer.straight_through(lats)
        qfeats = self.modules.decompressor(codes, tokens)
        # Down-scaling rounds up: up-scaled, there may be frames too many.
        qfeats = zero_beyond(qfeats[:, : target.shape[1]], target_frames)
        return {
            "feats": target,
            "qfeats": qfeats,
            "frames": target_frames,
            "lats": lats,
            "tokens": tokens,
        }

    def inputs(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """What the compressor gets, and what the decompressor shall give.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms, or cached features.

        Returns
        -------
        feats : torch.Tensor
            Features [B, N, C] of the frozen encoder.
        frames : torch.Tensor
            Frames, int64 [B].
        target, target_frames : torch.Tensor
            The same.
        """
        feats, frames = self.features(batch)
        return feats, frames, feats, frames

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
        mse, entropy = self.bottleneck_losses(predictions)
        if stage == sb.Stage.TRAIN:
            return mse + self.hparams.entropy_weight * entropy
        if self._samples.wanted:
            self._keep(batch, predictions)
        return mse

    def bottleneck_losses(
        self, predictions: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the bottleneck loses, and how it uses its codes.

        Arguments
        ---------
        predictions : dict
            Of :meth:`bottleneck`.

        Returns
        -------
        mse : torch.Tensor
            Mean squared error of the features, a scalar.
        entropy : torch.Tensor
            The quantizer's entropy loss, a scalar.
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
            total=sum_over_processes,
        )
        self.record(mse=mse, entropy=entropy)
        self.code_counts.add(self.codec.lats_to_toks(lats), tokens)
        return mse, entropy

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
        # A run that resumes within an epoch goes on counting.
        if stage != sb.Stage.TRAIN or self.step == 0:
            self.code_counts.clear()

    def stage_stats(self) -> dict[str, float]:
        """Share of codes used, and entropy of their use (1 is uniform).

        Returns
        -------
        dict
            ``code_usage`` and ``code_entropy``, both in [0, 1].
        """
        return self.code_counts.stats()
