"""What the Brains of all tasks share: inputs, and what is kept."""

from typing import Any

import torch

from speechbrain_focalcodec.training.brain import RecipeBrain
from speechbrain_focalcodec.utils.lengths import data_and_lengths

__all__ = ["TaskBrain"]


class TaskBrain(RecipeBrain):
    """A Brain whose ``modules`` have a ``front_end``.

    A task says what it takes of an utterance (:meth:`items`), which modules
    it trains (:meth:`build`), and has SpeechBrain's ``compute_forward`` and
    ``compute_objectives``. All modules are kept in checkpoints; the codec is
    none of them.

    Beside :class:`~speechbrain_focalcodec.training.brain.RecipeBrain`'s, there
    is an optional hyperparameter ``masking``, a list of callables: what each
    makes of the vectors [B, N, C] of a training batch takes their place.

    Arguments
    ---------
    modules : dict
        With ``front_end``, a
        :class:`~speechbrain_focalcodec.downstream.front_ends.FrontEnd`, and
        what the task trains beside it.
    opt_class : callable
        Makes the optimizer.
    hparams : dict
        Hyperparameters.
    run_opts : dict, optional
        SpeechBrain's run options.
    checkpointer : Checkpointer, optional
        Keeps the modules and what a resumed run needs.
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
        """Make the modules that depend on the data, and what they need.

        Arguments
        ---------
        hparams : dict
            The loaded YAML, once the data is prepared. What is learnt of the
            data, such as a tokenizer, is added to it.

        Returns
        -------
        dict
            Modules by name.
        """
        raise NotImplementedError

    def items(self) -> dict[str, tuple[str, Any]]:
        """What an item of the datasets holds beside the input.

        Returns
        -------
        dict
            As `items` of
            :func:`~speechbrain_focalcodec.downstream.data.task_dataset`:
            none by default.
        """
        return {}

    def check_data(self, train_set: Any) -> None:
        """Refuse training data that the task can learn nothing of.

        Arguments
        ---------
        train_set : DynamicItemDataset or TokenDataset
            The data.
        """

    def config(self) -> dict[str, Any] | None:
        """What the trained task is made of, for its `config.json`.

        Returns
        -------
        dict or None
            As `parse_task_config` takes it, but for the front end; `None`
            where the task has no interface, and its checkpoints are all that
            is kept.
        """
        return None

    @property
    def front_end(self) -> Any:
        """The front end, without the wrapper of several processes."""
        module = self.modules.front_end
        return getattr(module, "module", module)

    def prepared(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What the front end has prepared, now or before.

        Arguments
        ---------
        batch : PaddedBatch
            With a key ``prepared`` or ``sig``.

        Returns
        -------
        prepared : torch.Tensor
            Tokens [B, N] or features [B, N, C].
        lengths : torch.Tensor
            int64 [B].
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
        """Vectors of a batch.

        Arguments
        ---------
        batch : PaddedBatch
            With a key ``prepared`` or ``sig``.

        Returns
        -------
        x : torch.Tensor
            Vectors [B, N, C].
        lengths : torch.Tensor
            int64 [B].
        """
        prepared, lengths = self.prepared(batch)
        x = self.modules.front_end(prepared, lengths)
        if self.modules.training:
            for mask in getattr(self.hparams, "masking", None) or ():
                x = mask(x)
        return x, lengths
