"""The Brain of all stages of a codec.

A stage trains some parts of a codec and freezes the others. Its YAML lists the
trained parts and the objectives.
"""

import json
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
from speechbrain_focalcodec.training.adversarial_brain import AdversarialBrain
from speechbrain_focalcodec.training.averages import CodeCounts
from speechbrain_focalcodec.training.loading import (
    StageParts,
    load_weights,
    names_of,
    unfreeze,
)
from speechbrain_focalcodec.training.next_steps import next_steps
from speechbrain_focalcodec.training.samples import Samples, shown_outputs
from speechbrain_focalcodec.training.segments import crop_features
from speechbrain_focalcodec.training.sources import PARTS, find_sources
from speechbrain_focalcodec.utils.files import atomic_write_text
from speechbrain_focalcodec.utils.lengths import data_and_lengths

__all__ = ["CodecBrain"]

# Outputs that objectives can need, see `CodecBrain.compute_forward`.
OUTPUTS = ("sig", "feats", "qfeats", "lats", "estimate", "teacher")


class CodecBrain(AdversarialBrain):
    """Trains some parts of a codec and freezes the others.

    Besides those of :class:`~speechbrain_focalcodec.training.brain.RecipeBrain`
    these hyperparameters are used: ``codec`` (the
    :class:`~speechbrain_focalcodec.codec.FocalCodec`), ``num_samples``
    (utterances to write in validation), and

    - ``trains``: parts to train, of ``encoder``, ``positional_embedding`` (the
      encoder's), ``compressor``, ``decompressor`` and ``decoder``;
    - ``objectives``: list of
      :class:`~speechbrain_focalcodec.training.objectives.Objective`; the loss
      is their sum;
    - ``encoder_source``: source of the frozen encoder, or of the full-context
      teacher of a causal WavLM, see `wavlm_import.load_encoder`;
    - ``start_from``: runs of earlier stages and models to load weights from,
      see :mod:`~speechbrain_focalcodec.training.sources`;
    - ``freeze``: names, or their beginnings, of modules to freeze, such as
      ``compressor.layers.0``.

    Optional: ``dequantized`` (the decoder trains on quantized features),
    ``segment_frames`` (the decoder trains on random segments of this many
    frames, cut from features of the whole utterance), ``refine`` (False: a
    causal decompressor trains without its refiner, which the joint stage of a
    streaming model adds).

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
        Keeps the trained modules and the state that a resumed run needs.

    Raises
    ------
    ConfigError, CheckpointError
        If hyperparameters do not fit the codec, or weights are missing.
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
        self.trains = names_of(hparams["trains"])
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
        #: Whether the stage decodes to waveforms. It then trains at the codec's
        #: output rate, else at the input rate.
        self.decodes = "estimate" in self.needs
        #: Whether features go through the quantizer.
        self.quantizes = bool(
            self.needs & {"feats", "qfeats", "lats"}
            or hparams.get("dequantized")
        )
        #: Whether a gradient goes through the quantizer.
        self.learns_tokens = self.quantizes and not set(self.trains).isdisjoint(
            ("encoder", "compressor", "decompressor")
        )
        #: Whether the stage can train on cached features. Quantized features
        #: depend on the whole utterance.
        self.takes_features = (
            self.quantizes != self.decodes and "sig" not in self.needs
        )
        self.opponent = next((x for x in self.objectives if x.opt_class), None)
        self._check_sample_rate(codec, hparams)
        if not hparams.get("refine", True):
            codec.decompressor.remove_refiner()
        self.sources = find_sources(hparams["start_from"] or [])
        stage = StageParts(
            self.trains, "teacher" in self.needs, self.quantizes, self.decodes
        )
        self.loaded, teacher = load_weights(
            codec, stage, self.sources, hparams["encoder_source"]
        )
        self.teacher: Any = None if teacher is None else teacher.encoder
        parts = unfreeze(codec, self.trains, hparams["freeze"])
        super().__init__(
            {**parts, **modules}, opt_class, hparams, run_opts, checkpointer
        )
        # Frozen parts stay in eval mode: they are not in the Brain's modules.
        self.codec = codec.to(self.device).eval()
        #: Codec whose encoder computes the decoder's features.
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
            # DDP's and compilers' wrappers change the names of weights.
            for name, module in self.modules.items():
                self.checkpointer.add_recoverable(name, module)
            if self.learns_tokens:
                self.checkpointer.add_recoverable(
                    "code_counts", self._code_counts, optional_load=True
                )
        self.at_start.append(lambda: run_on_main(self._write_config))

    def _check_sample_rate(self, codec: FocalCodec, hparams: dict) -> None:
        """Raise if the data's rate is not that of the stage's waveforms."""
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

    def _write_config(self) -> None:
        """Write the codec's configuration for the export."""
        folder = Path(self.hparams.output_folder)
        text = json.dumps(self.codec.config.to_dict(), indent=2) + "\n"
        atomic_write_text(folder / CONFIG_FILE, text)

    # The forward pass

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        """Compute the outputs that the objectives need.

        Arguments
        ---------
        batch : PaddedBatch
            Batch with waveforms ``sig``, cached features ``feats``, or both.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        dict
            ``ids`` of the utterances and, if needed:

            - ``sig`` [B, T] at the codec's input rate and ``sig_lengths`` in
              samples, int64 [B]; not with cached features;
            - ``feats`` and ``qfeats`` [B, N, C], the target and the
              reconstructed features, and ``frames``, int64 [B];
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
        """Features for the compressor, or for the decoder if there is none."""
        if not self.quantizes:
            return self._full_context(sig, lengths)
        if "encoder" not in self.trains:
            with torch.no_grad():
                return self.codec.sig_to_feats(sig, lengths)
        # Through DDP's wrapper, which averages gradients.
        frames = self.codec.encoder.output_lengths(lengths)
        return zero_beyond(self.modules.encoder(sig, lengths), frames), frames

    def _full_context(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the frozen encoder, or of the teacher."""
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
            # Downscaling rounds up, so upscaling may return more frames.
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
        """Decode features; crop estimate and target to the same length."""
        estimate = self._part("decoder")(feats, frames)
        # The encoder may output one frame less than the waveform has.
        length = min(estimate.shape[1], sig.shape[1])
        lengths = torch.minimum(lengths, frames * self.codec.decoder.hop_length)
        return {
            "target": zero_beyond(sig[:, :length], lengths),
            "estimate": zero_beyond(estimate[:, :length], lengths),
            "lengths": lengths,
        }

    def _part(self, name: str) -> torch.nn.Module:
        """A part of the codec, with DDP's wrapper if it is trained."""
        if name in self.trains:
            return self.modules[name]
        return self.codec.get_submodule(PARTS[name])

    # Losses and steps

    def compute_objectives(
        self, outputs: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Sum of the objectives, a scalar."""
        loss = sum(objective(outputs, stage) for objective in self.objectives)
        if self.learns_tokens:
            toks = self.codec.lats_to_toks(outputs["lats"])
            self._code_counts.add(toks, outputs["tokens"])
        if stage != sb.Stage.TRAIN and self._samples.wanted:
            shown = shown_outputs(self, outputs, batch)
            if shown:
                self.keep_sample(outputs["ids"], **shown)
        return torch.as_tensor(loss, device=self.device)

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
        assert self._segment is not None
        if frames < self._segment.segment_samples:
            raise DataError(
                f"segment_frames is {self._segment.segment_samples}, but the "
                f"longest utterance has {int(frames)} frames: lower "
                "segment_frames, or take longer utterances"
            )

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self._samples.clear()
        # A run that resumes within an epoch keeps its counts.
        if stage != sb.Stage.TRAIN or self.step == 0:
            self._code_counts.clear()
        if stage == sb.Stage.TRAIN and self._segment is not None:
            self._segment.set_epoch(epoch)

    def stage_stats(self) -> dict[str, float]:
        return self._code_counts.stats() if self.learns_tokens else {}

    def keep_sample(
        self, ids: list[str], **outputs: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Keep the first utterances of validation, to be written.

        Arguments
        ---------
        ids : list of str
            Ids of the utterances.
        **outputs : tuple
            By name: waveforms [B, T] at the codec's output rate, or features
            [B, T, C], and their lengths, int64 [B].
        """
        self._samples.keep(ids, outputs)

    def write_samples(self, name: str) -> None:
        if if_main_process():
            folder = Path(self.hparams.output_folder) / "samples" / name
            step = self.optimizer_step
            self._samples.write(folder, self.codec, self.run_log, step)

    def next_steps(self) -> list[str]:
        """Lines for the end of a run: the next commands."""
        return next_steps(self)
