"""The Brain of a codec's stages.

A stage trains some parts of a codec and freezes the others. Its YAML lists the
parts and the objectives; what the stage computes follows from both.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main

from speechbrain_focalcodec.audio.files import resample, resampled_length
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.chunks import entry_span
from speechbrain_focalcodec.data.reader import RandomSegment
from speechbrain_focalcodec.errors import ConfigError, DataError
from speechbrain_focalcodec.model_files import CONFIG_FILE
from speechbrain_focalcodec.modules.bsq import to_sphere
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.averages import CodeCounts
from speechbrain_focalcodec.training.brain import RecipeBrain
from speechbrain_focalcodec.training.samples import Samples
from speechbrain_focalcodec.training.segments import crop_features
from speechbrain_focalcodec.training.sources import (
    PARTS,
    find_sources,
    load_parts,
)
from speechbrain_focalcodec.training.teacher import (
    full_context_codec,
    is_student,
    load_frozen_encoder,
)
from speechbrain_focalcodec.utils.files import atomic_write_text
from speechbrain_focalcodec.utils.lengths import data_and_lengths

__all__ = ["CodecBrain"]

# Parts that can be trained first together. A stage that trains parts of several
# of these sets continues earlier stages.
STAGES = (
    {"encoder", "positional_embedding"},
    {"compressor", "decompressor"},
    {"decoder"},
)
# What objectives can need, see `CodecBrain.compute_forward`.
OUTPUTS = ("sig", "feats", "qfeats", "lats", "estimate", "teacher")
# A streaming encoder keeps these from its teacher and from the position stage.
POSITIONS = (
    "encoder.encoder.positional_embedding",
    "encoder.encoder.relative_embedding",
)


class CodecBrain(RecipeBrain):
    """A Brain that trains some parts of a codec and freezes the others.

    Beside those of :class:`~speechbrain_focalcodec.training.brain.RecipeBrain`
    these hyperparameters are used: ``codec`` (the
    :class:`~speechbrain_focalcodec.codec.FocalCodec`), ``num_samples``
    (utterances to write in validation), and

    - ``trains``: the parts to train, of ``encoder``, ``positional_embedding``
      (the encoder's), ``compressor``, ``decompressor``, ``decoder``;
    - ``objectives``: a list of
      :class:`~speechbrain_focalcodec.training.objectives.Objective`, whose sum
      is the loss;
    - ``encoder_source``: where the encoder's weights come from, see
      `wavlm_import.load_encoder`. For a causal WavLM, those of its teacher: the
      same encoder with full context;
    - ``start_from``: runs of earlier stages and models to take weights from,
      see :mod:`~speechbrain_focalcodec.training.sources`;
    - ``freeze``: modules of the codec to leave as they are, by their names or
      beginnings of these, such as ``compressor.layers.0``.

    Optional: ``dequantized`` (the decoder gets the features that it will get in
    use, after the quantizer), ``segment_frames`` (the decoder trains on random
    segments of so many frames, of features of the whole utterance), ``refine``
    (False: a causal decompressor trains without its refiner, which a streaming
    model gets in its joint stage).

    Arguments
    ---------
    modules : dict, optional
        Modules to train beside the codec's parts.
    opt_class : callable, optional
        Makes the optimizer.
    hparams : dict
        Hyperparameters.
    run_opts : dict, optional
        SpeechBrain's run options.
    checkpointer : Checkpointer, optional
        Keeps what is trained and all that a resumed run needs.

    Raises
    ------
    ConfigError, CheckpointError
        If the hyperparameters do not fit the codec, or weights are missing.
    """

    def __init__(
        self,
        modules=None,
        opt_class=None,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        modules, codec = modules or {}, hparams["codec"]
        self.trains = _listed(hparams["trains"])
        self.objectives = [
            objective
            for objective in hparams["objectives"]
            if modules.keys() >= set(objective.modules)
        ]
        if not self.objectives:
            needed = {x for each in hparams["objectives"] for x in each.modules}
            raise ConfigError(
                "objectives: none is left to train by; modules must have "
                f"{' or '.join(sorted(needed)) or 'what they need'}"
            )
        self.needs = {x for each in self.objectives for x in each.needs}
        for key, names, known in (
            ("trains", self.trains, list(PARTS)),
            ("objectives: needs", sorted(self.needs), OUTPUTS),
        ):
            if not set(names) <= set(known):
                raise ConfigError(
                    f"{key}: {', '.join(names)}; known are {', '.join(known)}"
                )
        #: Whether the stage decodes to waveforms. Then it trains on waveforms
        #: at the codec's output rate, else at the input rate.
        self.decodes = "estimate" in self.needs
        #: Whether features go through the quantizer.
        self.quantizes = bool(
            self.needs & {"feats", "qfeats", "lats"}
            or hparams.get("dequantized")
        )
        #: Whether a gradient goes through the quantizer.
        self.learns_tokens = self.quantizes and self._trains_any(
            "encoder", "compressor", "decompressor"
        )
        #: Whether the stage can train from cached features. A segment of the
        #: features does not give a segment of the quantized ones.
        self.takes_features = (
            self.quantizes != self.decodes and "sig" not in self.needs
        )
        #: Trains its modules apart, such as a discriminator.
        self.opponent = next((x for x in self.objectives if x.opt_class), None)
        self._active = "generator"
        self._check_sample_rate(codec, hparams)
        if not hparams.get("refine", True):
            codec.decompressor.remove_refiner()
        self.sources = find_sources(hparams["start_from"] or [])
        teacher = self._load(codec, hparams)
        self.teacher = None if teacher is None else teacher.encoder
        parts = self._unfreeze(codec, hparams["freeze"])
        super().__init__(
            {**parts, **modules}, opt_class, hparams, run_opts, checkpointer
        )
        # Frozen parts are no modules of the Brain: they stay in eval mode.
        self.codec = codec.to(self.device).eval()
        #: Its encoder gives the decoder's features.
        self.teacher_codec = self.codec
        if teacher is not None:
            self.teacher_codec = teacher.to(self.device)
        #: Whether validation of a quantizer decodes to waveforms.
        self.audible = self.quantizes and "decoder" in self.loaded
        self._samples = Samples(hparams["num_samples"])
        self._code_counts = CodeCounts(self.codec.codebook_size, self.device)
        self._segment = None
        size = hparams.get("segment_frames")
        if size is not None:
            seed = hparams.get("seed", 0)
            self._segment = RandomSegment(size, seed, "segment_frames")
        for objective in self.objectives:
            objective.prepare(self)
        if self.checkpointer is not None:
            # Before DDP or a compiler wraps them, which changes their names.
            for name, module in self.modules.items():
                self.checkpointer.add_recoverable(name, module)
            if self.learns_tokens:
                self.checkpointer.add_recoverable(
                    "code_counts", self._code_counts, optional_load=True
                )
        self.at_start.append(lambda: run_on_main(self._write_config))

    def _trains_any(self, *parts: str) -> bool:
        return any(part in self.trains for part in parts)

    def _check_sample_rate(self, codec: FocalCodec, hparams: dict) -> None:
        """Raise if the data has another rate than the stage's waveforms."""
        side = "output" if self.decodes else "input"
        wanted = getattr(codec, f"sample_rate_{side}")
        given = hparams.get("sample_rate", wanted)
        if given != wanted:
            raise ConfigError(
                f"sample_rate is {given}, but the stage trains on "
                f"{codec.name}'s {side}, which has {wanted} Hz: set "
                f"sample_rate={wanted}, and lengths in samples (such as "
                "segment_samples) to match"
            )

    def _load(self, codec: FocalCodec, hparams: dict) -> FocalCodec | None:
        """Load all weights; the teacher where the stage uses one."""
        learns_from_teacher = "teacher" in self.needs or (
            "encoder" in self.trains and self.quantizes
        )
        teacher = None
        encoder_source = hparams["encoder_source"]
        if is_student(codec):
            if learns_from_teacher or (self.decodes and not self.quantizes):
                teacher = full_context_codec(codec, encoder_source)
                if not self.quantizes:
                    weights = teacher.encoder.state_dict()
                    codec.encoder.load_state_dict(weights)
        elif learns_from_teacher:
            raise ConfigError(
                f"{codec.name}: the stage trains a causal WavLM, and this "
                "encoder is none: take a streaming model, such as "
                "hparams/model/focalcodec_50hz_4k_causal.yaml"
            )
        elif self._lacks_encoder(codec):
            load_frozen_encoder(codec, encoder_source)
        self.loaded = load_parts(codec, self.sources, self._required(codec))
        return teacher

    def _lacks_encoder(self, codec: FocalCodec) -> bool:
        """Whether the encoder has weights, and no source that is known yet."""
        has_weights = next(codec.encoder.parameters(), None) is not None
        if "encoder" in self.trains or not has_weights:
            return False
        return not any(source.has("encoder") for source in self.sources)

    def _required(self, codec: FocalCodec) -> list[str]:
        """Parts that ``start_from`` must have, in the codec's order."""
        used = {"decoder"} if self.decodes else set()
        student = is_student(codec)
        if self.quantizes:
            used |= {"compressor", "decompressor"}
            if student:
                used.add("encoder")
        if sum(not stage.isdisjoint(self.trains) for stage in STAGES) == 1:
            used -= set(self.trains)
        position = "teacher" in self.needs and self.trains == ["encoder"]
        if position and not any(x.has("encoder") for x in self.sources):
            used.add("positional_embedding")
        return [part for part in PARTS if part in used]

    def _unfreeze(
        self, codec: FocalCodec, frozen: str | Iterable[str] | None
    ) -> dict[str, torch.nn.Module]:
        """Let the stage's parts get gradients; they are returned by name."""
        codec.requires_grad_(False)
        parts = {name: codec.get_submodule(PARTS[name]) for name in self.trains}
        for part in parts.values():
            part.requires_grad_(True)
        if "encoder" in parts and is_student(codec):
            _freeze(codec, POSITIONS)
        _freeze(codec, _listed(frozen))
        weights = (x for part in parts.values() for x in part.parameters())
        if not any(weight.requires_grad for weight in weights):
            raise ConfigError(
                f"freeze: {frozen} leaves the stage nothing to train; it "
                f"trains {', '.join(parts)}"
            )
        return parts

    def _write_config(self) -> None:
        """Leave the configuration where export finds it."""
        folder = Path(self.hparams.output_folder)
        text = json.dumps(self.codec.config.to_dict(), indent=2) + "\n"
        atomic_write_text(folder / CONFIG_FILE, text)

    # The forward pass

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        """Compute what the objectives need.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms ``sig``, or features ``feats`` of a cache, or both.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        dict
            ``ids`` of the utterances, and by need:

            - ``sig`` [B, T] at the codec's input rate and ``sig_lengths`` in
              samples, int64 [B]; not with cached features;
            - ``feats`` and ``qfeats`` [B, N, C], the features to reconstruct
              and the reconstructed ones, and ``frames``, int64 [B];
            - ``lats`` [B, N, d] and their lengths ``tokens``, int64 [B];
            - ``estimate`` and ``target`` [B, T], the decoded and the original
              waveform at the output rate, and ``lengths``, int64 [B].

            All are zero in the padding.
        """
        outputs: dict[str, Any] = {"ids": batch.id}
        codec = self.codec
        cached = hasattr(batch, "feats")
        if self.decodes or not cached:
            sig, lengths = self.signals(batch)
        if cached:
            # Of the segment alone, as are the waveforms.
            feats, frames = data_and_lengths(batch.to(self.device).feats)
            feats = feats.float()
        else:
            inputs, input_lengths = sig, lengths
            if self.decodes:
                rates = codec.sample_rate_output, codec.sample_rate_input
                inputs = resample(sig, *rates)
                input_lengths = resampled_length(lengths, *rates)
            outputs |= {"sig": inputs, "sig_lengths": input_lengths}
            if not self.quantizes and not self.decodes:
                return outputs
            feats, frames = self._encode(inputs, input_lengths)
        target, target_frames = feats, frames
        if self.quantizes:
            if "encoder" in self.trains:
                target, target_frames = self._full_context(
                    inputs, input_lengths
                )
                target = target[:, : feats.shape[1]]
                target_frames = torch.minimum(frames, target_frames)
                target = zero_beyond(target, target_frames)
            outputs |= self._bottleneck(feats, frames, target, target_frames)
            feats, frames = outputs["qfeats"], outputs["frames"]
        if self.decodes:
            segment = self._segment
            whole = stage != sb.Stage.TRAIN or cached
            if segment is not None and not whole:
                starts = map(segment.start, batch.id, frames.tolist())
                feats, frames, sig, lengths = crop_features(
                    *(feats, frames, sig, lengths),
                    torch.tensor(list(starts)).to(
                        frames.device, non_blocking=True
                    ),
                    *(segment.segment_samples, codec.decoder.hop_length),
                )
            outputs |= self._decode(feats, frames, sig, lengths)
        return outputs

    def _encode(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features that the compressor, or a decoder without one, gets."""
        if not self.quantizes:
            return self._full_context(sig, lengths)
        if "encoder" not in self.trains:
            with torch.no_grad():
                return self.codec.sig_to_feats(sig, lengths)
        # Through DDP's wrapper, which shares its gradients.
        frames = self.codec.encoder.output_lengths(lengths)
        return zero_beyond(self.modules.encoder(sig, lengths), frames), frames

    def _full_context(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the frozen encoder: the teacher, if there is one."""
        with torch.no_grad():
            if self.teacher is None:
                return self.codec.sig_to_feats(sig, lengths)
            frames = self.teacher.output_lengths(lengths)
            return zero_beyond(self.teacher(sig, lengths), frames), frames

    def _bottleneck(
        self,
        feats: torch.Tensor,
        frames: torch.Tensor,
        target: torch.Tensor,
        target_frames: torch.Tensor,
    ) -> dict[str, Any]:
        """Compress, quantize and decompress features [B, N, C]."""
        codec = self.codec
        if self.learns_tokens:
            lats = to_sphere(self._part("compressor")(feats, frames))
            tokens = codec.compressor.output_lengths(frames)
            codes = codec.quantizer.straight_through(lats)
            qfeats = self._part("decompressor")(codes, tokens)
            # Down-scaling rounds up: up-scaled, there may be frames too many.
            qfeats = zero_beyond(qfeats[:, : target.shape[1]], target_frames)
        else:
            with torch.no_grad():
                lats, tokens = codec.feats_to_lats(feats, frames)
                codes = codec.lats_to_codes(lats)
                qfeats, target_frames = codec.codes_to_qfeats(codes, tokens)
        return {
            "feats": target,
            "qfeats": qfeats,
            "frames": target_frames,
            "lats": lats,
            "tokens": tokens,
        }

    def _decode(
        self,
        feats: torch.Tensor,
        frames: torch.Tensor,
        sig: torch.Tensor,
        lengths: torch.Tensor,
    ) -> dict[str, Any]:
        """Decode features, and bring waveforms to the same lengths."""
        estimate = self._part("decoder")(feats, frames)
        # The encoder may give a frame less than the waveform has.
        length = min(estimate.shape[1], sig.shape[1])
        lengths = torch.minimum(lengths, frames * self.codec.decoder.hop_length)
        return {
            "target": zero_beyond(sig[:, :length], lengths),
            "estimate": zero_beyond(estimate[:, :length], lengths),
            "lengths": lengths,
        }

    def _part(self, name: str) -> torch.nn.Module:
        """A part of the codec; a trained one within DDP's wrapper."""
        if name in self.trains:
            return self.modules[name]
        return self.codec.get_submodule(PARTS[name])

    # Losses and steps

    def compute_objectives(
        self, outputs: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Sum the objectives.

        Arguments
        ---------
        outputs : dict
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
        loss = sum(objective(outputs, stage) for objective in self.objectives)
        if self.learns_tokens:
            toks = self.codec.lats_to_toks(outputs["lats"])
            self._code_counts.add(toks, outputs["tokens"])
        if stage != sb.Stage.TRAIN and self._samples.wanted:
            self._keep(outputs, batch)
        return torch.as_tensor(loss, device=self.device)

    def fit_batch(self, batch: Any) -> torch.Tensor:
        # Gradients are accumulated and clipped, and losses that are not finite
        # counted, by SpeechBrain's own helpers, as in Brain.fit_batch.
        opponent = self.opponent
        if opponent is None:
            return super().fit_batch(batch)
        should_step = self.step % self.grad_accumulation_factor == 0
        both = self.optimizer_step >= opponent.warmup
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx, torch.set_grad_enabled(both):
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
            with self.training_ctx:
                loss = opponent.opposing_loss(outputs)
            self._backward(loss)
            if should_step:
                self._step(*opponent.modules)
            with self.training_ctx, torch.set_grad_enabled(both):
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            if both:
                self._backward(loss)
            if both and should_step:
                self._step("generator")
                # Two optimizers stepped once; that is one step of training.
                self.optimizer_step -= 1
        self.on_fit_batch_end(batch, outputs, loss, should_step)
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
        if self.opponent is None:
            return optimizers
        return {self._active: optimizers[self._active]}

    def init_optimizers(self) -> None:
        opponent = self.opponent
        if opponent is None:
            super().init_optimizers()
            return
        [apart] = opponent.modules
        weights = [
            weight
            for name, module in self.modules.items()
            if name != apart
            for weight in module.parameters()
        ]
        theirs = self.modules[apart].parameters()
        self.optimizers_dict = {
            "generator": self.opt_class(weights),
            apart: opponent.opt_class(theirs),
        }
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                self.checkpointer.add_recoverable(
                    f"optimizer_{name}", optimizer
                )

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        # With a discriminator the last checkpoint is the best: what the decoder
        # learns from it, spectral losses do not reward.
        if self.opponent is not None and math.isfinite(loss):
            return -epoch
        return loss

    # Stages

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        if self._segment is not None:
            self._check_segment(getattr(train_set, "dataset", train_set))
        super().fit(epoch_counter, train_set, *args, **kwargs)

    def _check_segment(self, dataset: Any) -> None:
        """Raise if all utterances are shorter than a segment."""
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
                f"segment_frames is {self._segment.segment_samples}, but the "
                f"longest utterance has {int(frames)} frames: lower "
                "segment_frames, or take longer utterances"
            )

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self._samples.clear()
        # A run that resumes within an epoch continues its counts.
        if stage != sb.Stage.TRAIN or self.step == 0:
            self._code_counts.clear()
        if stage == sb.Stage.TRAIN and self._segment is not None:
            self._segment.set_epoch(epoch)

    def stage_stats(self) -> dict[str, float]:
        return self._code_counts.stats() if self.learns_tokens else {}

    # Samples of validation

    def keep_sample(
        self, ids: list[str], **outputs: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Keep the first utterances of validation, to be written.

        Arguments
        ---------
        ids : list of str
            Of the utterances.
        **outputs : tuple
            Waveforms [B, T] at the codec's output rate, or features
            [B, T, C], and their lengths, by their names.
        """
        self._samples.keep(ids, outputs)

    def _keep(self, outputs: dict[str, Any], batch: Any) -> None:
        """Keep waveforms, or features where there is no decoder."""
        codec, ids = self.codec, outputs["ids"]
        if self.decodes:
            lengths = outputs["lengths"]
            self.keep_sample(
                ids,
                original=(outputs["target"], lengths),
                reconstruction=(outputs["estimate"], lengths),
            )
        elif self.audible:
            sig, lengths = self.signals(batch)
            rates = codec.sample_rate_input, codec.sample_rate_output
            lengths = resampled_length(lengths, *rates)
            feats, qfeats = outputs["feats"], outputs["qfeats"].float()
            frames = outputs["frames"]
            self.keep_sample(
                ids,
                original=(resample(sig, *rates), lengths),
                unquantized=codec.feats_to_sig(feats, frames),
                reconstruction=codec.feats_to_sig(qfeats, frames),
            )
        elif self.quantizes:
            frames = outputs["frames"]
            self.keep_sample(
                ids,
                features=(outputs["feats"], frames),
                quantized_features=(outputs["qfeats"], frames),
            )

    def write_samples(self, name: str) -> None:
        if if_main_process():
            folder = Path(self.hparams.output_folder) / "samples" / name
            step = self.optimizer_step
            self._samples.write(folder, self.codec, self.run_log, step)

    # The end of a run

    def missing_parts(self) -> list[str]:
        """Parts for resynthesis that are not trained yet.

        Returns
        -------
        list of str
            Those that neither the stage nor ``start_from`` has.
        """
        needed = ["compressor", "decompressor", "decoder"]
        # Frozen encoders with full context have been loaded by now.
        if is_student(self.codec):
            needed.insert(0, "encoder")
        return [
            part
            for part in needed
            if part not in self.trains and part not in self.loaded
        ]

    def next_steps(self) -> list[str]:
        """Describe what to do with a trained stage.

        Returns
        -------
        list of str
            Lines for the end of a run: where it is, the next command, and how
            to load what that makes.
        """
        folder = str(self.hparams.output_folder)
        if self.debug and not self.debug_persistently:
            return [f"{folder}: a --debug run keeps no weights"]
        lines = [f"{folder} has the trained {', '.join(self.trains)}. Next:"]
        if self.trains == ["encoder"] and not is_student(self.codec):
            return [
                *lines,
                "  train the other stages with it: python recipes/CORPUS/"
                f"train.py hparams/train/STAGE.yaml --encoder_source={folder}",
            ]
        runs = [*(source.name for source in self.sources), folder]
        missing = self.missing_parts()
        if missing:
            lines.append(
                f"  a model needs a trained {', '.join(missing)} too: train "
                "the stages that give it (docs/training.md), those that build "
                f"on this one with --start_from=[{','.join(runs)}]; then"
            )
            runs.insert(0, "RUN_OF_THE_OTHER_STAGE")
        command = f"focalcodec export my_model {' '.join(runs)}"
        if self._lacks_encoder(self.codec):
            command += f" --encoder {self.hparams.encoder_source}"
        return [
            *lines,
            f"  {command}",
            "  focalcodec resynthesize speech.wav decoded.wav --model my_model"
            ', or FocalCodec.from_pretrained("my_model") in Python',
        ]


def _listed(names: str | Iterable[str] | None) -> list[str]:
    """Names from a list, one name or nothing."""
    return [names] if isinstance(names, str) else list(names or ())


def _freeze(codec: FocalCodec, names: Iterable[str]) -> None:
    """Take modules or weights of a codec out of training."""
    for name in names:
        found = [
            weight
            for key, weight in codec.named_parameters()
            if f"{key}.".startswith(f"{name}.")
        ]
        if not found:
            raise ConfigError(
                f"freeze: the codec has no {name!r}; names are those of its "
                "state dict, such as compressor or decompressor.layers.0"
            )
        for weight in found:
            weight.requires_grad_(False)
