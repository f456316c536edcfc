"""Base class of all recipes' Brains: logs, learning rates and checkpoints.

A stopped run resumes exactly, also within an epoch. Subclasses add the forward
pass and the losses.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import speechbrain as sb
import torch
from speechbrain.nnet.schedulers import NewBobScheduler, update_learning_rate
from speechbrain.utils.distributed import run_on_main

from speechbrain_focalcodec.data.pipeline import set_epoch
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.training.averages import Averages
from speechbrain_focalcodec.training.checkpointing import RANK
from speechbrain_focalcodec.training.distributed import (
    gather,
    num_processes,
)
from speechbrain_focalcodec.training.plan import (
    check_plan,
    planned_steps,
    shorten_warmup,
)
from speechbrain_focalcodec.training.precision import avoid_emulation
from speechbrain_focalcodec.training.random_state import (
    RandomState,
    mixed_seed,
    seed_apart,
)
from speechbrain_focalcodec.training.run_log import RunLog, gradient_norm
from speechbrain_focalcodec.utils.lengths import data_and_lengths

__all__ = ["RecipeBrain"]


class RecipeBrain(sb.Brain):
    """A Brain that logs, sets learning rates and keeps its best checkpoints.

    Besides SpeechBrain's hyperparameters it uses ``output_folder``,
    ``train_logger``, ``epoch_counter``, and one of ``lr_annealing`` (called
    once per epoch) and ``lr_schedule`` (called once per step; its
    ``total_steps`` is compared with the planned steps of the run). Optional:
    ``log_interval`` and ``loggers`` (see
    :class:`~speechbrain_focalcodec.training.run_log.RunLog`) and
    ``augmentation`` of training waveforms, called like SpeechBrain's
    ``Augmenter`` with waveforms [B, T] and relative lengths.

    Arguments
    ---------
    modules : dict, optional
        Modules to train.
    opt_class : callable, optional
        Makes their optimizer.
    hparams : dict
        Hyperparameters.
    run_opts : dict, optional
        SpeechBrain's run options.
    checkpointer : Checkpointer, optional
        Keeps the state that a resumed run needs. Subclasses add the modules.
    """

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
            getattr(hparams.get("train_logger"), "save_file", None),
        )
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        #: Called by all processes before the first write to the output
        #: folder, when modules, checkpoint and data have been checked.
        self.at_start: list[Callable[[], object]] = []
        avoid_emulation(self)
        self._averages = Averages()
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

    def record(self, **terms: torch.Tensor | float) -> None:
        """Add scalars to the epoch's averages, by their names in the logs."""
        for name, value in terms.items():
            value = torch.as_tensor(value).detach()
            self._averages.add(name, value)
            if self.modules.training:
                self.run_log.window.add(name, value)

    def write_samples(self, name: str) -> None:
        """Write the samples of a stage to a folder of this name.

        Called on the main process after validation and after the test.
        """

    def signals(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms of a batch, augmented in training.

        Arguments
        ---------
        batch : PaddedBatch
            Batch with a key ``sig``.

        Returns
        -------
        sig : torch.Tensor
            Waveforms [B, T].
        lengths : torch.Tensor
            Number of samples, int64 [B].
        """
        padded = batch.to(self.device).sig
        augmentation = getattr(self.hparams, "augmentation", None)
        if augmentation is not None and self.modules.training:
            padded = augmentation(*padded)
        sig, lengths = data_and_lengths(padded)
        rate = getattr(self.hparams, "sample_rate", None)
        if self.modules.training and rate is not None:
            self.run_log.add_audio(lengths.sum() / rate)
        return sig, lengths

    # SpeechBrain's hooks

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        self._train_set = train_set
        seed_apart()
        super().fit(self._epochs(epoch_counter), train_set, *args, **kwargs)
        if not self.test_only:
            self.run_log.write_window(
                self.optimizer_step, self._epoch, self._lr
            )

    def _epochs(self, counter: Iterable[int]) -> Iterator[int]:
        """Remaining epochs; checks the learning rate schedule first."""
        schedule = getattr(self.hparams, "lr_schedule", None)
        if schedule is not None:
            shorten_warmup(schedule)
        if schedule is not None and not self.debug:
            steps = planned_steps(
                self.hparams.epoch_counter.limit,
                len(self._train_set),
                self.grad_accumulation_factor,
                self.optimizer_step_limit,
            )
            check_plan(schedule, steps)
        epochs = iter(counter)
        # SpeechBrain checks the step limit inside an epoch: a run resumed at
        # its end would start an empty epoch. Within an epoch (step is not 0)
        # validation still has to run.
        while not self._optimizer_step_limit_exceeded or self.step:
            epoch = next(epochs, None)
            if epoch is None:
                return
            yield epoch

    def on_fit_start(self):
        super().on_fit_start()
        for write in self.at_start:
            write()
        epochs = self.hparams.epoch_counter.current
        self.run_log.resume(self.optimizer_step, epochs)

    def make_dataloader(self, dataset, stage, *args, **loader_kwargs):
        # SpeechBrain's loader draws a global random number for each iterator,
        # so a run that resumes within an epoch would draw one more. Here the
        # workers' seed depends on the epoch only.
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
        # A run that resumes within an epoch keeps its averages.
        if stage != sb.Stage.TRAIN or self.step == 0:
            self._averages.clear()
        self.loader_generator.manual_seed(mixed_seed(epoch))
        if stage == sb.Stage.TRAIN:
            set_epoch(self._train_set, epoch)
            self.run_log.start_clock()

    def on_fit_batch_start(self, batch, should_step):
        schedule = getattr(self.hparams, "lr_schedule", None)
        if schedule is not None and should_step:
            # Beyond its last step SpeechBrain's schedule turns negative.
            step = min(self.optimizer_step + 1, schedule.total_steps)
            for optimizer in self.optimizers_dict.values():
                schedule(optimizer, step)
                rate = optimizer.param_groups[0]["lr"]
                update_learning_rate(optimizer, rate * self._ratio(optimizer))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self._averages.read_pending()
        self.run_log.window.read_pending()
        self.run_log.window.add("loss", float(loss.detach()))
        if should_step:
            self.run_log.step_done(self.optimizer_step, self._epoch, self._lr)

    def optimizers_step(self):
        """Step, recording the norms of the gradients before clipping."""
        stepping = self.freeze_optimizers(self.optimizers_dict)
        for name, optimizer in stepping.items():
            norm = gradient_norm(optimizer, self.scaler.get_scale())
            alone = len(self.optimizers_dict) == 1
            # SpeechBrain warns if it is not finite, and may skip the step.
            if math.isfinite(norm):
                self.record(
                    **{"grad_norm" if alone else f"grad_norm_{name}": norm}
                )
        super().optimizers_step()

    def on_stage_end(self, stage, stage_loss, epoch=None):
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
            self.run_log.remove_text(f"Epoch loaded: {self._epoch} ")
            self.hparams.train_logger.log_stats(
                {"Epoch loaded": self._epoch},
                test_stats=stats,
            )
            run_on_main(self.write_samples, args=["test"])
            return
        lr = self._anneal(epoch, stage_loss)
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, "steps": self.optimizer_step, "lr": lr},
            train_stats=self._train_stats,
            valid_stats=stats,
        )
        run_on_main(self.write_samples, args=[f"epoch_{epoch:04d}"])
        if self.checkpointer is not None:
            rank = self.checkpoint_rank(stage_loss, epoch)
            self.checkpointer.save_and_keep_only(
                meta={"loss": stage_loss, "epoch": epoch, RANK: rank},
                min_keys=[RANK],
            )

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        """Rank of a checkpoint after validation; the lowest is the best."""
        del epoch
        return loss

    def stage_stats(self) -> dict[str, float]:
        """Scalars of a stage that are not averages over batches, by name."""
        return {}

    def update_average(self, loss, avg_loss):
        # SpeechBrain skips losses that are not finite: a model whose losses are
        # all NaN would validate with a loss of zero and be kept as the best.
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
        """Initial learning rate relative to that of the first optimizer."""
        first = next(iter(self.optimizers_dict.values()))
        return optimizer.defaults["lr"] / first.defaults["lr"]

    def _anneal(self, epoch: int, loss: float) -> float:
        """Set the next epoch's learning rate; returns that of this epoch."""
        optimizers = list(self.optimizers_dict.values())
        current = self._lr
        annealing = getattr(self.hparams, "lr_annealing", None)
        if annealing is not None:
            by_loss = isinstance(annealing, NewBobScheduler)
            _, new = annealing(loss if by_loss else epoch)
            for optimizer in optimizers:
                update_learning_rate(optimizer, new * self._ratio(optimizer))
        return current
