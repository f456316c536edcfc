"""Stage "encoder": a streaming encoder learns from the full-context one.

FocalCodec-Stream, section 2: after every transformer layer the causal student
shall give what its teacher gives there. Later layers weigh more. Position
embedding and relative positions stay as the stage before has left them.
"""

from typing import Any

import speechbrain as sb
import torch

from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.training.losses import masked_mse
from speechbrain_focalcodec.training.position import StudentBrain
from speechbrain_focalcodec.training.teacher import LayerOutputs

__all__ = ["DistillationBrain"]


class DistillationBrain(StudentBrain):
    """Distils the encoder, layer by layer.

    Hyperparameters beside those of
    :class:`~speechbrain_focalcodec.training.base.CodecBrain`:
    ``first_layer_weight`` and ``last_layer_weight``, between which the layers'
    weights are evenly spaced; the loss is the mean over the layers.
    ``start_from`` must have the position embedding, or an encoder to go on
    with.
    """

    TRAINED = ("encoder",)
    FROZEN = (
        "encoder.encoder.positional_embedding",
        "encoder.encoder.relative_embedding",
    )

    def required(self, hparams: dict[str, Any]) -> tuple[str, ...]:
        """The position embedding, unless there is a whole encoder.

        Arguments
        ---------
        hparams : dict
            The hyperparameters.

        Returns
        -------
        tuple of str
            Names of parts.
        """
        del hparams
        if any(source.has("encoder") for source in self.sources):
            return ()
        return ("positional_embedding",)

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        """Encode with teacher and student.

        Arguments
        ---------
        batch : PaddedBatch
            Waveforms at the codec's input rate.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        dict
            ``targets`` and ``estimates`` (one [B, N, C] a layer, zero in the
            padding) and ``frames``, int64 [B].
        """
        sig, lengths = self.signals(batch)
        student = self.codec.encoder
        with torch.no_grad(), LayerOutputs(self.teacher) as targets:
            self.teacher(sig, lengths)
        with LayerOutputs(student) as estimates:
            # Through DDP's wrapper: its gradients are to be shared.
            self.modules.encoder(sig, lengths)
        # Without context to the right the last frame of the teacher is one
        # before that of the student.
        frames = torch.minimum(
            self.teacher.output_lengths(lengths),
            student.output_lengths(lengths),
        )
        n = min(targets[-1].shape[1], estimates[-1].shape[1])
        return {
            "targets": [zero_beyond(x[:, :n], frames) for x in targets],
            "estimates": [zero_beyond(x[:, :n], frames) for x in estimates],
            "frames": frames,
        }

    def compute_objectives(
        self, predictions: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """Mean of the layers' weighted mean squared errors.

        Arguments
        ---------
        predictions : dict
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
        frames = predictions["frames"]
        errors = [
            masked_mse(estimate, target, frames)
            for estimate, target in zip(
                predictions["estimates"], predictions["targets"], strict=True
            )
        ]
        weights = torch.linspace(
            self.hparams.first_layer_weight,
            self.hparams.last_layer_weight,
            len(errors),
        ).tolist()
        self.record(
            **{f"mse_{i}": error for i, error in enumerate(errors, start=1)}
        )
        if stage != sb.Stage.TRAIN:
            last = predictions["estimates"][-1], predictions["targets"][-1]
            self.compare(batch, *last, frames)
        weighted = [w * x for w, x in zip(weights, errors, strict=True)]
        return torch.stack(weighted).mean()
