"""What the Brains of all stages share.

Which parts are trained, learning rates, logs, samples to listen to and look
at, checkpoints. A stage adds its forward pass and its losses.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.nnet.schedulers import NewBobScheduler, update_learning_rate
from speechbrain.utils.distributed import if_main_process, run_on_main
from torch import nn

from speechbrain_focalcodec.atomic import atomic_write_text
from speechbrain_focalcodec.checkpoint import CONFIG_FILE
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.pipeline import set_epoch
from speechbrain_focalcodec.errors import ConfigError, DataError
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.averages import Averages
from speechbrain_focalcodec.training.checkpointing import RANK
from speechbrain_focalcodec.training.distributed import (
    gather,
    num_processes,
)
from speechbrain_focalcodec.training.plan import check_plan, planned_steps
from speechbrain_focalcodec.training.random_state import (
    RandomState,
    mixed_seed,
    seed_apart,
)
from speechbrain_focalcodec.training.run_log import RunLog, gradient_norm
from speechbrain_focalcodec.training.samples import Samples
from speechbrain_focalcodec.training.sources import (
    PARTS,
    find_sources,
    load_parts,
)
from speechbrain_focalcodec.training.surgery import freeze
from speechbrain_focalcodec.training.teacher import (
    full_context_encoder,
    is_student,
    load_frozen_encoder,
)

__all__ = ["CodecBrain"]


class CodecBrain(sb.Brain):
    """A Brain that trains some parts of a codec and freezes the others.

    Beside SpeechBrain's own, these hyperparameters are used: ``codec`` (the
    :class:`~speechbrain_focalcodec.codec.FocalCodec`), ``output_folder``,
    ``train_logger``, ``num_samples`` (utterances to write in validation), one
    of ``lr_annealing`` (called once an epoch) and
    ``lr_schedule`` (called once a step; it has ``total_steps``, and a run that
    would take others is warned of), and

    - ``encoder_source``: where the encoder's weights come from, see
      :func:`~speechbrain_focalcodec.wavlm_import.load_encoder`. To a causal
      WavLM it gives the teacher: the same encoder with full context;
    - ``start_from``: runs of earlier stages and models to take weights from,
      see :mod:`~speechbrain_focalcodec.training.sources`;
    - ``freeze``: modules of the codec that stay as they are, by their names
      or beginnings of these, such as ``compressor.layers.0``;
    - ``augmentation`` of training waveforms, optional: takes and gives
      waveforms [B, T] and relative lengths, as SpeechBrain's ``Augmenter``;
    - ``log_interval`` and ``loggers``, both optional: see
      :class:`~speechbrain_focalcodec.training.run_log.RunLog`.

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
        self.run_log = RunLog(
            hparams["output_folder"],
            hparams.get("log_interval", 50),
            hparams.get("loggers"),
            hparams,
        )
        codec = hparams["codec"]
        self._check_sample_rate(codec, hparams)
        self.prepare_codec(codec, hparams)
        self.sources = find_sources(hparams["start_from"] or [])
        self.teacher = self._load(codec, hparams)
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
        if self.teacher is not None:
            self.teacher.to(self.device)
        self._averages = Averages()
        self._samples = Samples(hparams["num_samples"])
        self._train_stats: dict[str, float] = {}
        self.loader_generator = torch.Generator()
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("averages", self._averages)
            # Checkpoints of earlier versions have none.
            self.checkpointer.add_recoverable(
                "random_state", RandomState(), optional_load=True
            )
            self.checkpointer.add_recoverable(
                "run_log", self.run_log.window, optional_load=True
            )
            for name in self.TRAINED:
                self.checkpointer.add_recoverable(name, self.modules[name])
        run_on_main(self._write_config)

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

    def _load(self, codec: FocalCodec, hparams: dict) -> nn.Module | None:
        """Load what is given; the teacher where there is one."""
        required = self.required(hparams)
        teacher = None
        encoder_source = hparams["encoder_source"]
        if is_student(codec):
            if self.needs_teacher(hparams):
                teacher = full_context_encoder(codec, encoder_source)
            if self.NEEDS_STUDENT:
                required = ("encoder", *required)
            elif teacher is not None:
                codec.encoder.load_state_dict(teacher.state_dict())
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

    def signals(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms of a batch, augmented in training; absolute lengths.

        Arguments
        ---------
        batch : PaddedBatch
            With a key ``sig``.

        Returns
        -------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].
        """
        sig, wav_lens = batch.to(self.device).sig
        augmentation = getattr(self.hparams, "augmentation", None)
        if augmentation is not None and self.modules.training:
            sig, wav_lens = augmentation(sig, wav_lens)
        lengths = (wav_lens * sig.shape[1]).round().long()
        if self.modules.training and hasattr(self.hparams, "sample_rate"):
            self.run_log.heard(float(lengths.sum()) / self.hparams.sample_rate)
        return sig, lengths

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
        feats, lens = batch.to(self.device).feats
        return feats.float(), (lens * feats.shape[1]).round().long()

    def record(self, **terms: torch.Tensor | float) -> None:
        """Add values to the epoch's averages.

        Arguments
        ---------
        **terms : torch.Tensor or float
            Scalars by name, as they shall stand in the log.
        """
        for name, value in terms.items():
            number = float(torch.as_tensor(value).detach())
            self._averages.add(name, number)
            if self.modules.training:
                self.run_log.window.add(name, number)

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

    # SpeechBrain's hooks

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """Train, as SpeechBrain's Brain does.

        Arguments
        ---------
        epoch_counter : iterable
            Gives the epochs.
        train_set : Dataset or DataLoader
            Its random segments move on with the epochs.
        *args : tuple
            As for `Brain.fit`.
        **kwargs : dict
            As for `Brain.fit`.
        """
        self._train_set = train_set
        seed_apart()
        super().fit(self._epochs(epoch_counter), train_set, *args, **kwargs)
        if not self.test_only:
            # The last steps are fewer than a line's.
            self.run_log.write_window(
                self.optimizer_step, self._epoch, self._lr
            )

    def _epochs(self, counter: Iterable[int]) -> Iterator[int]:
        """The epochs that are left, once all is made ready."""
        schedule = getattr(self.hparams, "lr_schedule", None)
        if schedule is not None and not self.debug:
            steps = planned_steps(
                self.hparams.epoch_counter.limit,
                len(self._train_set),
                self.grad_accumulation_factor,
                self.optimizer_step_limit,
            )
            check_plan(schedule, steps)
        epochs = iter(counter)
        # SpeechBrain looks at its limit after an epoch has begun: a run that
        # is resumed at its end would have one more of no steps. Within an
        # epoch (its step is not 0) validation is still to come.
        while not self._optimizer_step_limit_exceeded or self.step:
            epoch = next(epochs, None)
            if epoch is None:
                return
            yield epoch

    def on_fit_start(self):
        """Resume from the last checkpoint, the log too."""
        super().on_fit_start()
        self.run_log.resume(self.optimizer_step)

    def make_dataloader(self, dataset, stage, *args, **loader_kwargs):
        """Make a loader that draws no global random numbers.

        Making its iterator does otherwise, once more in a run that resumes
        within an epoch. Here the seed of its workers follows from the epoch.

        Arguments
        ---------
        dataset : Dataset
            The data.
        stage : sb.Stage
            Training, validation or test.
        *args : tuple
            As for `Brain.make_dataloader`.
        **loader_kwargs : dict
            As for `Brain.make_dataloader`.

        Returns
        -------
        DataLoader
            The loader.

        Raises
        ------
        DataError
            If it would train on nothing.
        """
        loader_kwargs.setdefault("generator", self.loader_generator)
        loader = super().make_dataloader(dataset, stage, *args, **loader_kwargs)
        if stage == sb.Stage.TRAIN and len(loader) == 0:
            raise DataError(
                f"{len(dataset)} utterance(s) on {num_processes()} process(es) "
                f"fill no batch of {loader_kwargs.get('batch_size', 1)}, and "
                "drop_last leaves the rest out: lower batch_size, take fewer "
                "processes or more data"
            )
        if stage == sb.Stage.TRAIN:
            self._train_set = loader
        return loader

    def on_stage_start(self, stage, epoch=None):
        """Start the epoch's averages and move random segments on.

        Arguments
        ---------
        stage : sb.Stage
            Training, validation or test.
        epoch : int, optional
            The epoch.
        """
        self._samples.clear()
        # A run that resumes within an epoch goes on with its averages.
        if stage != sb.Stage.TRAIN or self.step == 0:
            self._averages.clear()
        self.loader_generator.manual_seed(mixed_seed(epoch))
        if stage == sb.Stage.TRAIN:
            set_epoch(self._train_set, epoch)
            self.run_log.start_clock()

    def on_fit_batch_start(self, batch, should_step):
        """Set the step's learning rate.

        Arguments
        ---------
        batch : PaddedBatch
            The batch.
        should_step : bool
            Whether the optimizers will step.
        """
        schedule = getattr(self.hparams, "lr_schedule", None)
        if schedule is not None and should_step:
            # Beyond its last step SpeechBrain's schedule turns negative.
            step = min(self.optimizer_step + 1, schedule.total_steps)
            for optimizer in self.optimizers_dict.values():
                schedule(optimizer, step)
                rate = optimizer.param_groups[0]["lr"]
                update_learning_rate(optimizer, rate * self._ratio(optimizer))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Log every so many steps.

        Arguments
        ---------
        batch : PaddedBatch
            The batch.
        outputs : Any
            Of the forward pass.
        loss : torch.Tensor
            Scalar.
        should_step : bool
            Whether the optimizers have stepped.
        """
        self.run_log.window.add("loss", float(loss.detach()))
        if should_step:
            self.run_log.step_done(self.optimizer_step, self._epoch, self._lr)

    def optimizers_step(self):
        """Step, recording the norms of the gradients before clipping."""
        stepping = self.freeze_optimizers(self.optimizers_dict)
        for name, optimizer in stepping.items():
            norm = gradient_norm(optimizer, self.scaler.get_scale())
            alone = len(self.optimizers_dict) == 1
            # SpeechBrain warns of others, and may skip the step.
            if math.isfinite(norm):
                self.record(
                    **{"grad_norm" if alone else f"grad_norm_{name}": norm}
                )
        super().optimizers_step()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, anneal, write samples and a checkpoint.

        Arguments
        ---------
        stage : sb.Stage
            Training, validation or test.
        stage_loss : float
            Mean loss of the stage.
        epoch : int, optional
            The epoch.
        """
        losses = gather(float(stage_loss))
        stage_loss = sum(losses) / len(losses)
        stats = {"loss": stage_loss}
        stats |= self._averages.means()
        stats |= self.stage_stats()
        if stage == sb.Stage.TRAIN:
            self._train_stats = stats
            self._log("train_epoch", {"lr": self._lr, **stats})
            return
        self._log("valid" if stage == sb.Stage.VALID else "test", stats)
        if stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                {"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )
            run_on_main(self._write_samples, args=["test"])
            return
        lr = self._anneal(epoch, stage_loss)
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, "steps": self.optimizer_step, "lr": lr},
            train_stats=self._train_stats,
            valid_stats=stats,
        )
        run_on_main(self._write_samples, args=[f"epoch_{epoch:04d}"])
        if self.checkpointer is not None:
            rank = self.checkpoint_rank(stage_loss, epoch)
            self.checkpointer.save_and_keep_only(
                meta={"loss": stage_loss, "epoch": epoch, RANK: rank},
                min_keys=[RANK],
            )

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        """What a checkpoint is kept and chosen by.

        (SpeechBrain's ``rank`` is a process's number.)

        Arguments
        ---------
        loss : float
            Mean loss of validation.
        epoch : int
            The epoch.

        Returns
        -------
        float
            The lower the better: here the loss.
        """
        del epoch
        return loss

    def stage_stats(self) -> dict[str, float]:
        """Figures of the stage that are no averages over batches.

        Returns
        -------
        dict
            Scalars by name; none by default.
        """
        return {}

    def update_average(self, loss, avg_loss):
        """Mean loss of the stage's batches so far.

        SpeechBrain leaves out what is not finite: a model that gives nothing
        else would validate with a loss of zero and be kept as the best.

        Arguments
        ---------
        loss : torch.Tensor
            Loss of a batch.
        avg_loss : float
            The mean before it.

        Returns
        -------
        float
            The mean; infinite in validation once a loss is not finite.
        """
        if self.modules.training:
            return super().update_average(loss, avg_loss)
        if not torch.isfinite(loss) or math.isinf(avg_loss):
            return math.inf
        return super().update_average(loss, avg_loss)

    def _should_save_intra_epoch_ckpt(self, *args):
        # Accumulated gradients are not kept: wait for the optimizers' step.
        if self.step % self.grad_accumulation_factor:
            return False
        return super()._should_save_intra_epoch_ckpt(*args)

    def _log(self, split: str, stats: dict[str, float]) -> None:
        self.run_log.write(split, self.optimizer_step, self._epoch, stats)

    @property
    def _epoch(self) -> int:
        return self.hparams.epoch_counter.current

    @property
    def _lr(self) -> float:
        optimizers = list(self.optimizers_dict.values())
        return optimizers[0].param_groups[0]["lr"]

    def _ratio(self, optimizer: torch.optim.Optimizer) -> float:
        """Its learning rate by that of the first, as they were made."""
        first = next(iter(self.optimizers_dict.values()))
        return optimizer.defaults["lr"] / first.defaults["lr"]

    def _anneal(self, epoch: int, loss: float) -> float:
        """Anneal once an epoch; the rate that the epoch had."""
        optimizers = list(self.optimizers_dict.values())
        current = self._lr
        annealing = getattr(self.hparams, "lr_annealing", None)
        if annealing is not None:
            by_loss = isinstance(annealing, NewBobScheduler)
            _, new = annealing(loss if by_loss else epoch)
            for optimizer in optimizers:
                update_learning_rate(optimizer, new * self._ratio(optimizer))
        return current

    def _write_samples(self, name: str) -> None:
        if if_main_process():
            folder = Path(self.hparams.output_folder) / "samples" / name
            step = self.optimizer_step
            self._samples.write(folder, self.codec, self.run_log, step)


def _listed(names: str | Iterable[str] | None) -> list[str]:
    """Names from a list, one name or nothing."""
    return [names] if isinstance(names, str) else list(names or ())
