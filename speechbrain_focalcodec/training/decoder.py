"""Stage "decoder": from features of the frozen encoder to the waveform.

FocalCodec, section 3.4: a hinge GAN with the discriminators of HiFi-GAN,
feature matching and a log-mel loss. Small models can leave the discriminator
out and train on spectral losses alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import speechbrain as sb
import torch
from torch.nn import functional as F

from speechbrain_focalcodec.audio.files import resample, resampled_length
from speechbrain_focalcodec.data.chunks import entry_span
from speechbrain_focalcodec.data.reader import RandomSegment
from speechbrain_focalcodec.errors import ConfigError, DataError
from speechbrain_focalcodec.modules.masking import length_mask, zero_beyond
from speechbrain_focalcodec.training.base import CodecBrain
from speechbrain_focalcodec.training.distributed import mean_over_processes
from speechbrain_focalcodec.training.losses import takes_lengths
from speechbrain_focalcodec.training.segments import (
    crop_features,
    random_starts,
    take_windows,
)
from speechbrain_focalcodec.training.sources import load_module
from speechbrain_focalcodec.training.teacher import is_student

__all__ = ["DecoderBrain"]


class DecoderBrain(CodecBrain):
    """Trains the decoder, with or without a discriminator.

    Hyperparameters beside those of
    :class:`~speechbrain_focalcodec.training.base.CodecBrain`: ``losses``
    (by name, each a module of estimate and target, and of ``lengths`` in
    samples if its ``forward`` takes them), ``loss_weights`` (by the same
    names, and ``adversarial`` and ``feature_matching``),
    ``discriminator_opt_class`` where the modules have a ``discriminator``, and
    ``dequantized``: whether to train on the features that the decoder will get
    in use, after the quantizer, whose compressor and decompressor
    ``start_from`` then must have. A decoder and a discriminator in
    ``start_from`` are trained further. Optional: ``segment_frames`` (train on
    random segments of so many frames, of features that were computed from the
    whole utterance), ``feature_cache`` (where these are kept, see
    :mod:`~speechbrain_focalcodec.training.caching`), ``discriminator_warmup``
    (steps in which the discriminator learns alone: a new one beside a trained
    decoder would lead it astray), and ``judged_samples`` (the discriminator
    gets a random part of so many samples of each utterance, to save time).

    The discriminator and the decoder each take one step a batch, by
    SpeechBrain's own helpers: gradients are accumulated and clipped, and
    losses that are not finite counted, as in every other Brain.
    """

    TRAINED: tuple[str, ...] = ("decoder",)
    TAKES_FEATURES = True
    HEARS_OUTPUT = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # A part of the features would not give a part of the quantized ones.
        if self.hparams.dequantized:
            self.TAKES_FEATURES = False
        if self.adversarial:
            # As it is before DDP or a compiler wraps it: their names of
            # weights would not be found again.
            self._discriminator = self.modules.discriminator
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable(
                    "discriminator", self._discriminator
                )
        for loss in self.hparams.losses.values():
            loss.to(self.device)
        self._active = "generator"
        size = getattr(self.hparams, "segment_frames", None)
        self._segment = None
        if size is not None:
            seed = getattr(self.hparams, "seed", 0)
            self._segment = RandomSegment(size, seed, "segment_frames")
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
        if self.adversarial:
            load_module(self._discriminator, self.sources)

    def needs_teacher(self, hparams: dict[str, Any]) -> bool:
        """Unless the decoder shall see what the student gives.

        Arguments
        ---------
        hparams : dict
            The hyperparameters.

        Returns
        -------
        bool
            Whether it does not.
        """
        return not hparams["dequantized"]

    def required(self, hparams: dict[str, Any]) -> tuple[str, ...]:
        """The bottleneck, where the decoder shall see what it gives.

        Arguments
        ---------
        hparams : dict
            The hyperparameters.

        Returns
        -------
        tuple of str
            Names of parts.
        """
        if not hparams["dequantized"]:
            return ()
        student = ("encoder",) if is_student(hparams["codec"]) else ()
        return (*student, "compressor", "decompressor")

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
            ``target`` and ``estimate`` [B, T], ``lengths`` int64 [B],
            ``judged``: where in each utterance the part begins that the
            discriminator gets, int64 [B]; None where it gets all.
        """
        sig, lengths = self.signals(batch)
        if hasattr(batch, "feats"):
            # Of the segment alone, as are the waveforms.
            return self.decode(*self.features(batch), sig, lengths)
        codec = self.codec
        with torch.no_grad():
            rates = codec.sample_rate_output, codec.sample_rate_input
            inputs = resample(sig, *rates)
            input_lengths = resampled_length(lengths, *rates)
            if self.hparams.dequantized:
                feats, frames = codec.sig_to_feats(inputs, input_lengths)
                lats, tokens = codec.feats_to_lats(feats, frames)
                codes = codec.lats_to_codes(lats)
                feats, frames = codec.codes_to_qfeats(codes, tokens)
            else:
                feats, frames = self.full_context_features(
                    inputs, input_lengths
                )
        segment = self._segment
        if segment is not None and stage == sb.Stage.TRAIN:
            starts = map(segment.start, batch.id, frames.tolist())
            feats, frames, sig, lengths = crop_features(
                *(feats, frames, sig, lengths),
                torch.tensor(list(starts), device=frames.device),
                *(segment.segment_samples, codec.decoder.hop_length),
            )
        return self.decode(feats, frames, sig, lengths)

    def decode(
        self,
        feats: torch.Tensor,
        frames: torch.Tensor,
        sig: torch.Tensor,
        lengths: torch.Tensor,
    ) -> dict[str, Any]:
        """Decode features, and bring waveforms to the same lengths.

        Arguments
        ---------
        feats : torch.Tensor
            Features [B, N, C].
        frames : torch.Tensor
            Frames, int64 [B].
        sig : torch.Tensor
            The original waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        dict
            As of :meth:`compute_forward`.
        """
        estimate = self.modules.decoder(feats, frames)
        # The encoder may give a frame less than the waveform has.
        length = min(estimate.shape[1], sig.shape[1])
        hop = self.codec.decoder.hop_length
        lengths = torch.minimum(lengths, frames * hop)
        return {
            "target": zero_beyond(sig[:, :length], lengths),
            "estimate": zero_beyond(estimate[:, :length], lengths),
            "lengths": lengths,
            "judged": self._draw_judged(lengths, length),
        }

    @property
    def _judged_samples(self) -> int | None:
        """Samples that the discriminator gets; None for all."""
        return getattr(self.hparams, "judged_samples", None)

    def _draw_judged(
        self, lengths: torch.Tensor, length: int
    ) -> torch.Tensor | None:
        """Where the parts begin that the discriminator gets."""
        wanted = self._judged_samples
        used = self.adversarial and self.modules.training
        if not used or wanted is None or wanted >= length:
            return None
        # Within each utterance: of padding, which is the same in both, it
        # could learn nothing. Drawn by torch's own generator: processes draw
        # apart (seed_apart), a resumed run as it would have (RandomState).
        # Losses are means weighted by samples, so that parts of different
        # batches may be of different sizes.
        return random_starts(lengths, wanted)

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
        lengths = predictions["lengths"]
        terms = {}
        for name, loss in self.hparams.losses.items():
            extra = {"lengths": lengths} if takes_lengths(loss) else {}
            terms[name] = loss(estimate, target, **extra)
        if self.adversarial and stage == sb.Stage.TRAIN:
            # Not the wrapper of DDP: its weights get no gradient here.
            discriminator = self._discriminator
            discriminator.requires_grad_(False)
            given, wanted, kept = self._judged(predictions)
            fake, fake_maps = discriminator(given)
            with torch.no_grad():
                _, real_maps = discriminator(wanted)
            discriminator.requires_grad_(True)
            hinges = [_mean(F.relu(1 - x), given, kept) for x in _floats(fake)]
            distances = [
                _mean((x - y).abs(), given, kept)
                for maps in zip(fake_maps, real_maps, strict=True)
                for x, y in zip(*maps, strict=True)
            ]
            terms["adversarial"], terms["feature_matching"] = self._means(
                given,
                kept,
                torch.stack(hinges).sum(),
                torch.stack(distances).mean(),
            )
        self.record(**terms)
        if stage != sb.Stage.TRAIN:
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
        given, wanted, kept = self._judged(predictions)
        fake, _ = self.modules.discriminator(given.detach())
        real, _ = self.modules.discriminator(wanted)
        fake, real = _floats(fake), _floats(real)

        def mean(scores: Sequence[torch.Tensor]) -> torch.Tensor:
            """Over discriminators, however many scores each gives."""
            return torch.stack([_mean(x, given, kept) for x in scores]).mean()

        hinges = [F.relu(1 - x) for x in real] + [F.relu(1 + x) for x in fake]
        loss, score_real, score_fake = self._means(
            given,
            kept,
            mean(hinges) * len(hinges),
            mean(real),
            mean(fake),
        )
        self.record(
            discriminator=loss,
            score_real=score_real,
            score_fake=score_fake,
            # Its sides are told apart by the sign.
            discriminator_accuracy=0.5
            * (
                mean([(x > 0).float() for x in real])
                + mean([(x < 0).float() for x in fake])
            ),
        )
        return loss

    def _judged(
        self, predictions: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Estimate and target as the discriminator gets them, [B, 1, T].

        And their lengths, where there is padding.
        """
        estimate, target = predictions["estimate"], predictions["target"]
        lengths = predictions.get("lengths")
        starts, size = predictions.get("judged"), self._judged_samples
        if starts is not None and size is not None:
            estimate = take_windows(estimate, starts, size)
            target = take_windows(target, starts, size)
        if lengths is not None:
            lengths = lengths.clamp(max=target.shape[1])
            if bool((lengths == target.shape[1]).all()):
                lengths = None
        return estimate[:, None], target[:, None], lengths

    @staticmethod
    def _means(
        sig: torch.Tensor, lengths: torch.Tensor | None, *means: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """From means over waveforms [B, 1, T] here, those of all processes."""
        weight = sig.numel() if lengths is None else lengths.sum()
        return mean_over_processes(torch.stack(means), weight).unbind()

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """Train, once it is known that utterances are as long as a segment.

        Arguments
        ---------
        epoch_counter : iterable
            Gives the epochs.
        train_set : Dataset or DataLoader
            The training data.
        *args : tuple
            As for `Brain.fit`.
        **kwargs : dict
            As for `Brain.fit`.

        Raises
        ------
        DataError
            If all are shorter.
        """
        if self._segment is not None:
            dataset = getattr(train_set, "dataset", train_set)
            rates = self.codec.sample_rate_output, self.codec.sample_rate_input
            spans = (
                entry_span(dataset.data[utt_id], rates[0])
                for utt_id in dataset.data_ids
            )
            longest = torch.tensor(max(stop - start for start, stop in spans))
            frames = self.codec.encoder.output_lengths(
                resampled_length(longest, *rates)
            )
            if frames < self._segment.segment_samples:
                raise DataError(
                    f"segment_frames is {self._segment.segment_samples}, but "
                    f"the longest utterance has {int(frames)} frames: lower "
                    "segment_frames, or take longer utterances"
                )
        super().fit(epoch_counter, train_set, *args, **kwargs)

    def on_stage_start(self, stage, epoch=None):
        """Move random segments on.

        Arguments
        ---------
        stage : sb.Stage
            Training, validation or test.
        epoch : int, optional
            The epoch.
        """
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN and self._segment is not None:
            self._segment.set_epoch(epoch)

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
        warmup = getattr(self.hparams, "discriminator_warmup", 0)
        # At first a new discriminator learns alone.
        both = self.optimizer_step >= warmup
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx, torch.set_grad_enabled(both):
                predictions = self.compute_forward(batch, sb.Stage.TRAIN)
            with self.training_ctx:
                loss = self.discriminator_objective(predictions)
            self._backward(loss)
            if should_step:
                self._step("discriminator")
            with self.training_ctx, torch.set_grad_enabled(both):
                loss = self.compute_objectives(
                    predictions, batch, sb.Stage.TRAIN
                )
            if both:
                self._backward(loss)
            if both and should_step:
                self._step("generator")
                # Two optimizers stepped once; that is one step of training.
                self.optimizer_step -= 1
        self.on_fit_batch_end(batch, predictions, loss, should_step)
        return loss.detach().cpu()

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        """With a discriminator the last checkpoint is the best.

        What it teaches, spectral losses do not reward: by them the first
        epochs would be best.

        Arguments
        ---------
        loss : float
            Mean loss of validation.
        epoch : int
            The epoch.

        Returns
        -------
        float
            The lower the better.
        """
        if self.adversarial and math.isfinite(loss):
            return -epoch
        return loss

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
            "generator": self.opt_class(
                [
                    weight
                    for name in self.TRAINED
                    for weight in self.modules[name].parameters()
                ]
            )
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


def _floats(scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Scores in float32.

    A loss in autocast's types has too few digits to show that it falls, and
    in fp16 its gradient, a GradScaler's first scale, would be infinite.
    """
    return [score.float() for score in scores]


def _mean(
    x: torch.Tensor, sig: torch.Tensor, lengths: torch.Tensor | None
) -> torch.Tensor:
    """Mean of scores [B, N] or maps [B, C, N, ...] of waveforms [B, 1, T].

    The share of the N steps that lies beyond a waveform's length does not
    count.
    """
    if lengths is None:
        return x.mean()
    axis = 1 if x.ndim == 2 else 2
    steps = x.shape[axis]
    valid = length_mask(-(-lengths * steps // sig.shape[-1]), steps)
    shape = [len(x), *[1] * (x.ndim - 1)]
    shape[axis] = steps
    valid = valid.reshape(shape).expand_as(x)
    return torch.where(valid, x, 0).sum() / valid.sum()
