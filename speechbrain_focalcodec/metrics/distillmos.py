"""DistillMOS: predicted opinion score, by distillmos."""

import contextlib
import io
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.metrics.base import Column, Sample, ScoreMetric
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["DistillMos"]


class DistillMos(ScoreMetric):
    """DistillMOS of the output, 1 to 5.

    The extra ``mos`` includes the model. The library reads its weights with
    ``weights_only=True``.

    Arguments
    ---------
    device : str
        Device to run on.
    """

    name = "distillmos"
    converts = True
    columns = (Column("distillmos", "DistillMOS", "higher", "distillmos"),)

    def __init__(self, device: str = "cpu"):
        library = import_extra("distillmos", "mos")
        self.window = import_extra("distillmos.sqa", "mos").SEQ_LEN
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            model = library.ConvTransformerSQAModel()
        self.model = model.to(device).eval()
        self.device = device

    @torch.inference_mode()
    def scores(self, samples: Sequence[Sample]) -> list[float]:
        scores = [0.0] * len(samples)
        lengths = [len(sample.output) for sample in samples]
        # The model pads short signals, so they form one batch. It splits
        # longer ones into a batch of windows.
        short = [i for i, length in enumerate(lengths) if length <= self.window]
        batches = [
            [i] for i, length in enumerate(lengths) if length > self.window
        ]
        for batch in (*batches, *([short] if short else [])):
            sigs = pad_sequence(
                [samples[i].output for i in batch], batch_first=True
            )
            found = self.model(sigs.float().to(self.device)).flatten().tolist()
            for i, score in zip(batch, found, strict=True):
                scores[i] = score
        return scores
