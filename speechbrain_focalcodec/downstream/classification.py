"""One label an utterance: speakers, keywords, emotions."""

from typing import Any

import speechbrain as sb
import torch
from torch.nn import functional as F

from speechbrain_focalcodec.downstream.brain import TaskBrain
from speechbrain_focalcodec.downstream.learnt import (
    learn_classes,
    network_and_output,
)
from speechbrain_focalcodec.downstream.task_config import options_of
from speechbrain_focalcodec.errors import DataError

__all__ = ["ClassificationBrain"]


class ClassificationBrain(TaskBrain):
    """Trains a network and an output layer with cross-entropy.

    Modules: ``front_end``, ``network`` (one vector an utterance, such as
    :class:`~speechbrain_focalcodec.downstream.networks.PooledBiLSTM`) and
    ``output``, a score for each class. Hyperparameters: ``classes`` (their
    names) and ``label``, the column that names an utterance's. Checkpoints are
    ranked by the validation's error rate.
    """

    @classmethod
    def build(cls, hparams: dict[str, Any]) -> dict[str, torch.nn.Module]:
        """Find the classes, and make the network and its output.

        Arguments
        ---------
        hparams : dict
            With ``front_end``, ``network`` (called with ``input_dim``) and
            ``label``. Receives ``classes``.

        Returns
        -------
        dict
            ``network`` and ``output``.
        """
        hparams["classes"] = classes = learn_classes(hparams)
        return network_and_output(hparams, len(classes))

    def config(self) -> dict[str, Any]:
        """What the classification is made of.

        Returns
        -------
        dict
            As `ClassificationConfig` has it.
        """
        return {
            "task": "classification",
            "network": options_of(self.hparams.network),
            "label": self.hparams.label,
            "classes": self.hparams.classes,
        }

    def items(self) -> dict[str, tuple[str, Any]]:
        """The class.

        Returns
        -------
        dict
            As :func:`~speechbrain_focalcodec.downstream.data.task_dataset`
            takes it.
        """
        numbers = {name: i for i, name in enumerate(self.hparams.classes)}

        def number(name: Any) -> int:
            try:
                return numbers[str(name)]
            except KeyError:
                raise DataError(
                    f"{self.hparams.label} is {name!r} in validation or test, "
                    "which no training utterance has"
                ) from None

        return {"class": (self.hparams.label, number)}

    def compute_forward(self, batch: Any, stage: sb.Stage) -> torch.Tensor:
        """Scores.

        Arguments
        ---------
        batch : PaddedBatch
            The batch.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        torch.Tensor
            [B, classes].
        """
        x, lengths = self.inputs(batch)
        return self.modules.output(self.modules.network(x, lengths)).float()

    def compute_objectives(
        self, predictions: torch.Tensor, batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Cross-entropy, and errors.

        Arguments
        ---------
        predictions : torch.Tensor
            Scores [B, classes].
        batch : PaddedBatch
            The batch, with ``class``.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        wanted = torch.as_tensor(batch["class"]).to(
            predictions.device, non_blocking=True
        )
        wrong = predictions.argmax(-1) != wanted
        for error in 100.0 * wrong:
            self.record(error_rate=error)
        return F.cross_entropy(predictions, wanted)

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        """The error rate.

        Arguments
        ---------
        loss : float
            Mean loss of validation.
        epoch : int
            The epoch.

        Returns
        -------
        float
            The lower the better; the loss counts among equals.
        """
        return self._averages.means()["error_rate"] + min(loss, 1e3) * 1e-6
