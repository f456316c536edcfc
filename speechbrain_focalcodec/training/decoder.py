"""Stage "decoder": from features of the frozen encoder to the waveform.

FocalCodec, section 3.4: a hinge GAN with the discriminators of HiFi-GAN,
feature matching and a log-mel loss. Small models can leave the discriminator
out and train on spectral losses alone.
"""

from typing import Any

import speechbrain as sb
import torch
from speechbrain.lobes.models.HifiGAN import (
    HingeDLoss,
    HingeGLoss,
    MelganFeatureLoss,
)

from speechbrain_focalcodec.audio import resample, resampled_length
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.base import CodecBrain
from speechbrain_focalcodec.training.export import load_run
from speechbrain_focalcodec.training.segments import crop_features

__all__ = ["DecoderBrain"]


class DecoderBrain(CodecBrain):
    """Trains the decoder, with or without a discriminator.

    Hyperparameters beside those of
    :class:`~speechbrain_focalcodec.training.base.CodecBrain`: ``losses``
    (spectral losses by name, each a module of estimate and target),
    ``loss_weights`` (by the same names, and ``adversarial`` and
    ``feature_matching``), ``discriminator_opt_class`` where the modules have a
    ``discriminator``, and two output folders, or null: ``quantizer_run`` (its
    quantizer stage gives the features that the decoder will get in use) and
    ``decoder_run`` (a decoder to start from). Optional: ``segment_frames``
    (train on random segments of so many frames, of features that were
    computed from the whole utterance).

    The discriminator and the decoder each take one step a batch, by
    SpeechBrain's own helpers: gradients are accumulated and clipped, and
    losses that are not finite counted, as in every other Brain.
    """

    TRAINED = ("decoder",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for loss in self.hparams.losses.values():
            loss.to(self.device)
        self.hinge_generator = HingeGLoss()
        self.hinge_discriminator = HingeDLoss()
        self.feature_matching = MelganFeatureLoss()
        self._active = "generator"
        if (
            self.adversarial
            and self.scaler.is_enabled()
            and self.grad_accumulation_factor > 1
        ):
            # The discriminator's step rescales in the middle of what the
            # decoder has accumulated.
            raise ConfigError(
                "grad_accumulation_factor > 1 does not go with a "
                "discriminator in fp16: use --precision=bf16 or a larger "
                "batch_size"
            )
        if self.hparams.decoder_run is not None:
            load_run(self.codec, self.hparams.decoder_run, ["decoder"])
        self.dequantized = self.hparams.quantizer_run is not None
        if self.dequantized:
            parts = ["compressor", "decompressor"]
            load_run(self.codec, self.hparams.quantizer_run, parts)

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator."""
        return "discriminator" in self.modules

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
            ``target`` and ``estimate`` [B, T], ``lengths`` int64 [B].
        """
        sig, lengths = self.signals(batch, stage)
        codec = self.codec
        with torch.no_grad():
            rates = codec.sample_rate_output, codec.sample_rate_input
            inputs = resample(sig, *rates)
            input_lengths = resampled_length(lengths, *rates)
            feats, frames = codec.sig_to_feats(inputs, input_lengths)
            if self.dequantized:
                lats, tokens = codec.feats_to_lats(feats, frames)
                codes = codec.lats_to_codes(lats)
                feats, frames = codec.codes_to_qfeats(codes, tokens)
        segment_frames = getattr(self.hparams, "segment_frames", None)
        if segment_frames is not None and stage == sb.Stage.TRAIN:
            feats, frames, sig, lengths = crop_features(
                *(feats, frames, sig, lengths),
                *(segment_frames, codec.decoder.hop_length),
            )
        estimate = self.modules.decoder(feats, frames)
        # The encoder may give a frame less than the waveform has.
        length = min(estimate.shape[1], sig.shape[1])
        lengths = torch.minimum(lengths, frames * codec.decoder.hop_length)
        return {
            "target": zero_beyond(sig[:, :length], lengths),
            "estimate": zero_beyond(estimate[:, :length], lengths),
            "lengths": lengths,
        }

    def compute_objectives(
        self, predictions: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Loss of the decoder.

        Arguments
        ---------
        predictions : dict
            Of :meth:`compute_forward`.
        batch : PaddedBatch
            The batch.
        stage : sb.Stage
            The adversarial terms are computed in training alone.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        target, estimate = predictions["target"], predictions["estimate"]
        terms = {
            name: loss(estimate, target)
            for name, loss in self.hparams.losses.items()
        }
        if self.adversarial and stage == sb.Stage.TRAIN:
            # Not the wrapper of DDP: its weights get no gradient here.
            discriminator = self._unwrapped_discriminator()
            discriminator.requires_grad_(False)
            fake, fake_maps = discriminator(estimate[:, None])
            with torch.no_grad():
                _, real_maps = discriminator(target[:, None])
            discriminator.requires_grad_(True)
            terms["adversarial"] = sum(map(self.hinge_generator, fake))
            terms["feature_matching"] = self.feature_matching(
                fake_maps, real_maps
            )
        self.record(**terms)
        if stage != sb.Stage.TRAIN:
            lengths = predictions["lengths"]
            self.keep_sample(
                batch,
                original=(target, lengths),
                reconstruction=(estimate, lengths),
            )
        weights = self.hparams.loss_weights
        return sum(weights[name] * term for name, term in terms.items())

    def discriminator_objective(
        self, predictions: dict[str, Any]
    ) -> torch.Tensor:
        """Hinge loss of the discriminator.

        Arguments
        ---------
        predictions : dict
            Of :meth:`compute_forward`.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        fake, _ = self.modules.discriminator(
            predictions["estimate"].detach()[:, None]
        )
        real, _ = self.modules.discriminator(predictions["target"][:, None])
        loss = sum(
            self.hinge_discriminator(score_fake=f, score_real=r)[0]
            for f, r in zip(fake, real, strict=True)
        )
        self.record(
            discriminator=loss,
            score_real=torch.stack([r.mean() for r in real]).mean(),
            score_fake=torch.stack([f.mean() for f in fake]).mean(),
        )
        return loss

    def fit_batch(self, batch: Any) -> torch.Tensor:
        """One step of the discriminator, if any, and one of the decoder.

        Arguments
        ---------
        batch : PaddedBatch
            The batch.

        Returns
        -------
        torch.Tensor
            Loss of the decoder, detached.
        """
        if not self.adversarial:
            return super().fit_batch(batch)
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                predictions = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.discriminator_objective(predictions)
            self._backward(loss)
            if should_step:
                self._step("discriminator")
            with self.training_ctx:
                loss = self.compute_objectives(
                    predictions, batch, sb.Stage.TRAIN
                )
            self._backward(loss)
            if should_step:
                self._step("generator")
                # Two optimizers stepped once; that is one step of training.
                self.optimizer_step -= 1
        self.on_fit_batch_end(batch, predictions, loss, should_step)
        return loss.detach().cpu()

    def _backward(self, loss: torch.Tensor) -> None:
        """Scale, check and differentiate a loss, as Brain.fit_batch does."""
        loss = self.scaler.scale(loss / self.grad_accumulation_factor)
        self.check_loss_isfinite(loss)
        loss.backward()

    def _step(self, name: str) -> None:
        """Unscale, clip and step one optimizer by Brain.optimizers_step."""
        self._active = name
        self.optimizers_step()

    def freeze_optimizers(self, optimizers: dict[str, Any]) -> dict[str, Any]:
        """The optimizers that step now.

        Arguments
        ---------
        optimizers : dict
            All of them by name.

        Returns
        -------
        dict
            The one whose turn it is.
        """
        return {self._active: optimizers[self._active]}

    def init_optimizers(self) -> None:
        """Make one optimizer for the decoder and one for its discriminator."""
        self.optimizers_dict = {
            "generator": self.opt_class(self.modules.decoder.parameters())
        }
        if self.adversarial:
            self.optimizers_dict["discriminator"] = (
                self.hparams.discriminator_opt_class(
                    self.modules.discriminator.parameters()
                )
            )
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(
                    f"optimizer_{name}", optimizer
                )
            if self.adversarial:
                self.checkpointer.add_recoverable(
                    "discriminator", self._unwrapped_discriminator()
                )

    def _unwrapped_discriminator(self) -> torch.nn.Module:
        discriminator = self.modules.discriminator
        return getattr(discriminator, "module", discriminator)
