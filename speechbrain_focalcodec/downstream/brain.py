"""Base class of the Brains of downstream tasks."""

from typing import Any

import torch

from speechbrain_focalcodec.training.brain import RecipeBrain
from speechbrain_focalcodec.utils.lengths import data_and_lengths

__all__ = ["TaskBrain"]


class TaskBrain(RecipeBrain):
    """Brain of a downstream task; its modules include a ``front_end``.

    A task implements :meth:`build`, :meth:`items` and SpeechBrain's
    ``compute_forward`` and ``compute_objectives``. Checkpoints hold all
    modules; the codec is not among them.

    The optional hyperparameter ``masking`` is a list of callables. Each is
    applied in turn to the vectors [B, N, C] of a training batch. The other
    hyperparameters are those of
    :class:`~speechbrain_focalcodec.training.brain.RecipeBrain`.

    Arguments
    ---------
    modules : dict
        ``front_end`` (a
        :class:`~speechbrain_focalcodec.downstream.front_ends.FrontEnd`) and
        the modules that :meth:`build` returned.
    opt_class : callable
        Makes the optimizer from the parameters.
    hparams : dict
        Hyperparameters.
    run_opts : dict, optional
        SpeechBrain's run options.
    checkpointer : Checkpointer, optional
        Saves the modules and the state of training.
    """

    def __init__(
        self,
        modules=None,
        opt_class=None,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("modules", self.modules)

    @classmethod
    def build(cls, hparams: dict[str, Any]) -> dict[str, torch.nn.Module]:
        """Make the modules of the task, once the data is prepared.

        Arguments
        ---------
        hparams : dict
            The loaded YAML. Receives objects learnt from the training data,
            such as a tokenizer.

        Returns
        -------
        dict
            Modules by name.
        """
        raise NotImplementedError

    def items(self) -> dict[str, tuple[str, Any]]:
        """Values of an utterance that the task needs besides the input.

        Returns
        -------
        dict
            Argument `items` of
            :func:`~speechbrain_focalcodec.downstream.data.task_dataset`.
        """
        return {}

    def check_data(self, train_set: Any) -> None:
        """Raise a DataError if the task cannot train on this dataset."""

    def config(self) -> dict[str, Any] | None:
        """Configuration of the trained task without the front end.

        Returns
        -------
        dict or None
            For `parse_task_config` of `task_config.py`.
            None if the task has no interface; only checkpoints are kept then.
        """
        return None

    @property
    def front_end(self) -> Any:
        """The front end without its DistributedDataParallel wrapper."""
        module = self.modules.front_end
        return getattr(module, "module", module)

    def prepared(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Output of the front end's `prepare` for a batch.

        Arguments
        ---------
        batch : PaddedBatch
            With ``prepared``, or ``sig`` to prepare now.

        Returns
        -------
        prepared : torch.Tensor
            Tokens [B, N] or features [B, N, C].
        lengths : torch.Tensor
            Absolute lengths, int64 [B].
        """
        if hasattr(batch, "prepared"):
            padded = batch.to(self.device).prepared
            prepared, lengths = data_and_lengths(padded)
        else:
            prepared, lengths = self.front_end.prepare(*self.signals(batch))
        if self.modules.training:
            self.run_log.add_audio(lengths.sum() / self.front_end.rate)
        return prepared, lengths

    def inputs(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of a batch, masked in training.

        Arguments
        ---------
        batch : PaddedBatch
            With ``prepared`` or ``sig``.

        Returns
        -------
        x : torch.Tensor
            Vectors [B, N, C].
        lengths : torch.Tensor
            Absolute lengths, int64 [B].
        """
        prepared, lengths = self.prepared(batch)
        x = self.modules.front_end(prepared, lengths)
        if self.modules.training:
            for mask in getattr(self.hparams, "masking", None) or ():
                x = mask(x)
        return x, lengths
