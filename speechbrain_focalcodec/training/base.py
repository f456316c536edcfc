"""What the Brains of all stages share.

Which parts are trained, learning rates, logs, samples to listen to and look
at, checkpoints. A stage adds its forward pass and its losses.
"""

import json
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.nnet.schedulers import NewBobScheduler, update_learning_rate
from speechbrain.utils.distributed import if_main_process, run_on_main

from speechbrain_focalcodec.atomic import atomic_write_text
from speechbrain_focalcodec.audio import write_audio
from speechbrain_focalcodec.checkpoint import CONFIG_FILE
from speechbrain_focalcodec.data.pipeline import set_epoch
from speechbrain_focalcodec.plotting import plot_features, plot_spectrograms
from speechbrain_focalcodec.training.averages import Averages
from speechbrain_focalcodec.wavlm_import import load_encoder

__all__ = ["CodecBrain"]


class CodecBrain(sb.Brain):
    """A Brain that trains some parts of a codec and freezes the others.

    Beside SpeechBrain's own, these hyperparameters are used: ``codec`` (the
    :class:`~speechbrain_focalcodec.codec.FocalCodec`), ``output_folder``,
    ``train_logger``, ``num_samples`` (utterances to write in validation), one
    of ``lr_annealing`` (called once an epoch) and
    ``lr_schedule`` (called once a step), and for an encoder with weights
    ``encoder_source`` (see
    :func:`~speechbrain_focalcodec.wavlm_import.load_encoder`). Optional:
    ``augmentation`` of training waveforms (takes and gives waveforms [B, T]
    and relative lengths, such as SpeechBrain's ``Augmenter``).

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

    def __init__(
        self,
        modules=None,
        opt_class=None,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        codec = hparams["codec"]
        if next(codec.encoder.parameters(), None) is not None:
            load_encoder(codec, hparams["encoder_source"])
        codec.requires_grad_(False)
        parts = {name: getattr(codec, name) for name in self.TRAINED}
        for part in parts.values():
            part.requires_grad_(True)
        super().__init__(
            {**parts, **(modules or {})},
            opt_class,
            hparams,
            run_opts,
            checkpointer,
        )
        # Frozen parts are no modules of the Brain: they stay in eval mode.
        self.codec = codec.to(self.device).eval()
        self._averages = Averages()
        self._samples: list[dict[str, torch.Tensor]] = []
        self._train_stats: dict[str, float] = {}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("averages", self._averages)
            for name in self.TRAINED:
                self.checkpointer.add_recoverable(name, self.modules[name])
        run_on_main(self._write_config)

    def _write_config(self) -> None:
        """Leave the configuration where export finds it."""
        folder = Path(self.hparams.output_folder)
        text = json.dumps(self.codec.config.to_dict(), indent=2) + "\n"
        atomic_write_text(folder / CONFIG_FILE, text)

    # What stages use

    def signals(
        self, batch: Any, stage: sb.Stage | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms of a batch and their absolute lengths.

        Arguments
        ---------
        batch : PaddedBatch
            With a key ``sig``.
        stage : sb.Stage, optional
            In training waveforms are augmented, where the hyperparameter
            ``augmentation`` is set.

        Returns
        -------
        sig : torch.Tensor
            Waveform [B, T].
        lengths : torch.Tensor
            Samples, int64 [B].
        """
        sig, wav_lens = batch.to(self.device).sig
        augmentation = getattr(self.hparams, "augmentation", None)
        if augmentation is not None and stage == sb.Stage.TRAIN:
            sig, wav_lens = augmentation(sig, wav_lens)
        return sig, (wav_lens * sig.shape[1]).round().long()

    def record(self, **terms: torch.Tensor | float) -> None:
        """Add values to the epoch's averages.

        Arguments
        ---------
        **terms : torch.Tensor or float
            Scalars by name, as they shall stand in the log.
        """
        for name, value in terms.items():
            self._averages.add(name, float(torch.as_tensor(value).detach()))

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
        for i, name in enumerate(batch.id):
            if len(self._samples) >= self.hparams.num_samples:
                return
            kept = {
                # What a diverged model gives is heard as silence.
                kind: x[i, : int(lengths[i])]
                .detach()
                .float()
                .nan_to_num(posinf=0.0, neginf=0.0)
                .cpu()
                for kind, (x, lengths) in outputs.items()
            }
            self._samples.append({"id": name, **kept})

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
        super().fit(epoch_counter, train_set, *args, **kwargs)

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
        if stage == sb.Stage.TRAIN:
            set_epoch(self._train_set, epoch)

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
        stats = {"loss": stage_loss}
        stats |= self._averages.means()
        if stage == sb.Stage.TRAIN:
            self._train_stats = stats
            return
        stats |= self.stage_stats()
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
            self.checkpointer.save_and_keep_only(
                meta={"loss": stage_loss, "epoch": epoch},
                min_keys=["loss"],
            )

    def stage_stats(self) -> dict[str, float]:
        """Figures of the stage that are no averages over batches.

        Returns
        -------
        dict
            Scalars by name; none by default.
        """
        return {}

    def _anneal(self, epoch: int, loss: float) -> float:
        """Anneal once an epoch; the rate that the epoch had."""
        optimizers = list(self.optimizers_dict.values())
        current = optimizers[0].param_groups[0]["lr"]
        annealing = getattr(self.hparams, "lr_annealing", None)
        if annealing is not None:
            by_loss = isinstance(annealing, NewBobScheduler)
            _, new = annealing(loss if by_loss else epoch)
            for optimizer in optimizers:
                update_learning_rate(optimizer, new)
        return current

    def _write_samples(self, name: str) -> None:
        """Write the kept utterances as audio and one picture each."""
        if not if_main_process():
            return
        folder = Path(self.hparams.output_folder) / "samples" / name
        codec = self.codec
        rate = codec.sample_rate_output
        for sample in self._samples:
            kept = {k: v for k, v in sample.items() if k != "id"}
            picture = folder / f"{sample['id']}.png"
            if any(x.ndim > 1 for x in kept.values()):
                frame_rate = codec.sample_rate_input / codec.encoder.hop_length
                plot_features(picture, kept, frame_rate)
                continue
            for kind, sig in kept.items():
                write_audio(folder / f"{sample['id']}_{kind}.wav", sig, rate)
            plot_spectrograms(picture, kept, rate)
