"""What the Brains of a codec's stages share.

Which parts are trained and where their weights come from, samples to listen
to and look at. A stage adds its forward pass and its losses.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.distributed import if_main_process, run_on_main

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.model_files import CONFIG_FILE
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.brain import RecipeBrain
from speechbrain_focalcodec.training.samples import Samples
from speechbrain_focalcodec.training.sources import (
    PARTS,
    find_sources,
    load_parts,
)
from speechbrain_focalcodec.training.surgery import freeze
from speechbrain_focalcodec.training.teacher import (
    full_context_codec,
    is_student,
    load_frozen_encoder,
)
from speechbrain_focalcodec.utils.files import atomic_write_text
from speechbrain_focalcodec.utils.lengths import data_and_lengths

__all__ = ["CodecBrain"]


class CodecBrain(RecipeBrain):
    """A Brain that trains some parts of a codec and freezes the others.

    Beside those of :class:`~speechbrain_focalcodec.training.brain.RecipeBrain`
    these hyperparameters are used: ``codec`` (the
    :class:`~speechbrain_focalcodec.codec.FocalCodec`), ``num_samples``
    (utterances to write in validation), and

    - ``encoder_source``: where the encoder's weights come from, see
      `wavlm_import.load_encoder`. To a causal
      WavLM it gives the teacher: the same encoder with full context;
    - ``start_from``: runs of earlier stages and models to take weights from,
      see :mod:`~speechbrain_focalcodec.training.sources`;
    - ``freeze``: modules of the codec that stay as they are, by their names
      or beginnings of these, such as ``compressor.layers.0``.

    Arguments
    ---------
    modules : dict, optional
        Modules to train beside the codec's parts.
    opt_class : callable, optional
        Makes the optimizer of the codec's parts.
    hparams : dict
        Hyperparameters.
    run_opts : dict, optional
        SpeechBrain's run options.
    checkpointer : Checkpointer, optional
        Keeps the trained parts and all that a resumed run needs.
    """

    #: Names of the codec's parts that the stage trains.
    TRAINED: tuple[str, ...] = ()
    #: Modules within them that it leaves as they are.
    FROZEN: tuple[str, ...] = ()
    #: Whether a causal WavLM must have been trained before.
    NEEDS_STUDENT = False
    #: Whether the stage can train from cached features, see `features`.
    TAKES_FEATURES = False
    #: Whether validation decodes to waveforms.
    audible = False
    #: Whether the waveforms are those that the codec gives, not what it takes.
    HEARS_OUTPUT = False

    def __init__(
        self,
        modules=None,
        opt_class=None,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        codec = hparams["codec"]
        self._check_sample_rate(codec, hparams)
        self.prepare_codec(codec, hparams)
        self.sources = find_sources(hparams["start_from"] or [])
        teacher = self._load(codec, hparams)
        self.teacher = None if teacher is None else teacher.encoder
        codec.requires_grad_(False)
        parts = {
            name: codec.get_submodule(PARTS[name]) for name in self.TRAINED
        }
        for part in parts.values():
            part.requires_grad_(True)
        freeze(codec, [*self.FROZEN, *_listed(hparams["freeze"])])
        if not any(
            weight.requires_grad
            for part in parts.values()
            for weight in part.parameters()
        ):
            raise ConfigError(
                f"freeze: {hparams['freeze']} leaves {type(self).__name__} "
                f"nothing to train; it trains {', '.join(parts)}"
            )
        super().__init__(
            {**parts, **(modules or {})},
            opt_class,
            hparams,
            run_opts,
            checkpointer,
        )
        # Frozen parts are no modules of the Brain: they stay in eval mode.
        self.codec = codec.to(self.device).eval()
        #: Its encoder gives what :meth:`full_context_features` does.
        self.teacher_codec = self.codec
        if teacher is not None:
            self.teacher_codec = teacher.to(self.device)
        self._samples = Samples(hparams["num_samples"])
        if self.checkpointer is not None:
            for name in self.TRAINED:
                self.checkpointer.add_recoverable(name, self.modules[name])
        self.at_start.append(lambda: run_on_main(self._write_config))

    def _check_sample_rate(self, codec: FocalCodec, hparams: dict) -> None:
        """Raise if the data has another rate than the stage's waveforms."""
        side = "output" if self.HEARS_OUTPUT else "input"
        wanted = getattr(codec, f"sample_rate_{side}")
        given = hparams.get("sample_rate", wanted)
        if given != wanted:
            raise ConfigError(
                f"sample_rate is {given}, but {type(self).__name__} trains on "
                f"{codec.name}'s {side}, which has {wanted} Hz: set "
                f"sample_rate={wanted}, and lengths in samples (such as "
                "segment_samples) to match"
            )

    def prepare_codec(self, codec: FocalCodec, hparams: dict[str, Any]) -> None:
        """Check or change the codec before anything is loaded.

        Arguments
        ---------
        codec : FocalCodec
            The codec.
        hparams : dict
            The hyperparameters.
        """

    def _load(self, codec: FocalCodec, hparams: dict) -> FocalCodec | None:
        """Load what is given; the teacher where there is one."""
        required = self.required(hparams)
        teacher = None
        encoder_source = hparams["encoder_source"]
        if is_student(codec):
            if self.needs_teacher(hparams):
                teacher = full_context_codec(codec, encoder_source)
            if self.NEEDS_STUDENT:
                required = ("encoder", *required)
            elif teacher is not None:
                codec.encoder.load_state_dict(teacher.encoder.state_dict())
        elif self._lacks_encoder(codec):
            load_frozen_encoder(codec, encoder_source)
        self.loaded = load_parts(codec, self.sources, required)
        return teacher

    def _lacks_encoder(self, codec: FocalCodec) -> bool:
        """Whether the encoder has weights, which come from nowhere yet."""
        has_weights = next(codec.encoder.parameters(), None) is not None
        if "encoder" in self.TRAINED or not has_weights:
            return False
        return not any(source.has("encoder") for source in self.sources)

    def needs_teacher(self, hparams: dict[str, Any]) -> bool:
        """Whether a causal WavLM's teacher is used.

        Arguments
        ---------
        hparams : dict
            The hyperparameters.

        Returns
        -------
        bool
            Where it is not, ``start_from`` must have the encoder.
        """
        del hparams
        return True

    def required(self, hparams: dict[str, Any]) -> tuple[str, ...]:
        """Parts that ``start_from`` must have.

        Arguments
        ---------
        hparams : dict
            The hyperparameters.

        Returns
        -------
        tuple of str
            Names of parts; none by default.
        """
        del hparams
        return ()

    def _write_config(self) -> None:
        """Leave the configuration where export finds it."""
        folder = Path(self.hparams.output_folder)
        text = json.dumps(self.codec.config.to_dict(), indent=2) + "\n"
        atomic_write_text(folder / CONFIG_FILE, text)

    # What stages use

    def full_context_features(
        self, sig: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the frozen encoder: the teacher, if there is one.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [B, T] at the codec's input rate.
        lengths : torch.Tensor
            Samples, int64 [B].

        Returns
        -------
        feats : torch.Tensor
            Features [B, N, C], without gradient.
        frames : torch.Tensor
            Frames, int64 [B].
        """
        with torch.no_grad():
            if self.teacher is None:
                return self.codec.sig_to_feats(sig, lengths)
            frames = self.teacher.output_lengths(lengths)
            return zero_beyond(self.teacher(sig, lengths), frames), frames

    def features(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of a batch: its cached ones, or those of its waveforms.

        Arguments
        ---------
        batch : PaddedBatch
            With a key ``feats`` or ``sig``.

        Returns
        -------
        feats : torch.Tensor
            Features [B, T, C].
        frames : torch.Tensor
            Their lengths, int64 [B].
        """
        if not hasattr(batch, "feats"):
            with torch.no_grad():
                return self.codec.sig_to_feats(*self.signals(batch))
        feats, frames = data_and_lengths(batch.to(self.device).feats)
        return feats.float(), frames

    def keep_sample(
        self, batch: Any, **outputs: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Keep the first utterances of validation, to be written.

        Arguments
        ---------
        batch : PaddedBatch
            With the utterances' ``id``.
        **outputs : tuple
            Waveforms [B, T] at the codec's output rate, or features
            [B, T, C], and their lengths, by what they are called.
        """
        self._samples.keep(batch, outputs)

    def missing_parts(self) -> list[str]:
        """Parts for resynthesis that nothing has trained.

        Returns
        -------
        list of str
            Those that neither the stage nor ``start_from`` gives.
        """
        needed = ["compressor", "decompressor", "decoder"]
        # Frozen encoders with full context have been loaded by now.
        if is_student(self.codec):
            needed.insert(0, "encoder")
        return [
            part
            for part in needed
            if part not in self.TRAINED and part not in self.loaded
        ]

    def next_steps(self) -> list[str]:
        """What to do with a trained stage.

        Returns
        -------
        list of str
            Lines for the end of a run: where it is, the next command, and how
            to load what that makes.
        """
        folder = str(self.hparams.output_folder)
        if self.debug and not self.debug_persistently:
            return [f"{folder}: a --debug run keeps no weights"]
        lines = [f"{folder} has the trained {', '.join(self.TRAINED)}. Next:"]
        if self.TRAINED == ("encoder",) and not is_student(self.codec):
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

    def on_stage_start(self, stage, epoch=None):
        """Start the stage's samples.

        Arguments
        ---------
        stage : sb.Stage
            Training, validation or test.
        epoch : int, optional
            The epoch.
        """
        super().on_stage_start(stage, epoch)
        self._samples.clear()

    def write_samples(self, name: str) -> None:
        """Write the utterances that validation has kept.

        Arguments
        ---------
        name : str
            Folder within `samples`.
        """
        if if_main_process():
            folder = Path(self.hparams.output_folder) / "samples" / name
            step = self.optimizer_step
            self._samples.write(folder, self.codec, self.run_log, step)


def _listed(names: str | Iterable[str] | None) -> list[str]:
    """Names from a list, one name or nothing."""
    return [names] if isinstance(names, str) else list(names or ())
