"""Classification of utterances: speakers, keywords, emotions."""

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

    Its modules are ``front_end``, ``network`` (returns one vector per
    utterance, such as
    :class:`~speechbrain_focalcodec.downstream.networks.PooledBiLSTM`) and
    ``output`` (one score per class). Its hyperparameters are ``classes``
    (names) and ``label`` (the manifest's column that holds the class). The
    best checkpoint has the lowest error rate in validation.
    """

    @classmethod
    def build(cls, hparams: dict[str, Any]) -> dict[str, torch.nn.Module]:
        hparams["classes"] = classes = learn_classes(hparams)
        return network_and_output(hparams, len(classes))

    def config(self) -> dict[str, Any]:
        return {
            "task": "classification",
            "network": options_of(self.hparams.network),
            "label": self.hparams.label,
            "classes": self.hparams.classes,
        }

    def items(self) -> dict[str, tuple[str, Any]]:
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
        x, lengths = self.inputs(batch)
        return self.modules.output(self.modules.network(x, lengths)).float()

    def compute_objectives(
        self, predictions: torch.Tensor, batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        classes = torch.as_tensor(batch["class"]).to(
            predictions.device, non_blocking=True
        )
        wrong = predictions.argmax(-1) != classes
        for error in 100.0 * wrong:
            self.record(error_rate=error)
        return F.cross_entropy(predictions, classes)

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        return self._averages.means()["error_rate"] + min(loss, 1e3) * 1e-6
