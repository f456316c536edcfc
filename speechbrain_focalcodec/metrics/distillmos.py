"""DistillMOS: quality as listeners would rate it, by distillmos."""

import contextlib
import io
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.metrics.base import Column, Metric, Row, Sample
from speechbrain_focalcodec.metrics.values import as_figure, is_measurable
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["DistillMos"]


class DistillMos(Metric):
    """DistillMOS of the output, 1 to 5.

    The model comes with distillmos, in the extra ``mos``, which reads its
    weights with ``weights_only=True``.

    Arguments
    ---------
    device : str
        Where it runs.

    Example
    -------
    >>> sig = torch.randn(16000, generator=torch.manual_seed(0))
    >>> [row] = DistillMos()([Sample("a", sig, sig)])
    >>> 1 < row["distillmos"] < 5
    True
    """

    name = "distillmos"
    converts = True
    columns = (Column("distillmos", "DistillMOS", "higher", "distillmos"),)

    def __init__(self, device: str = "cpu"):
        library = import_extra("distillmos", "mos")
        self.window = import_extra("distillmos.sqa", "mos").SEQ_LEN
        with contextlib.redirect_stdout(io.StringIO()):  # says what it loads
            model = library.ConvTransformerSQAModel()
        self.model = model.to(device).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        rows: list[Row] = [{"distillmos": None} for _ in samples]
        kept = [
            (row, sample.output)
            for row, sample in zip(rows, samples, strict=True)
            if is_measurable(sample.output)
        ]
        # The model fills short signals up with zeros, so these make a batch;
        # longer ones are batches of windows.
        short = [item for item in kept if len(item[1]) <= self.window]
        groups = [[item] for item in kept if len(item[1]) > self.window]
        for group in (*groups, *([short] if short else [])):
            sigs = pad_sequence([sig for _, sig in group], batch_first=True)
            scores = self.model(sigs.float().to(self.device)).flatten()
            for (row, _), score in zip(group, scores, strict=True):
                row["distillmos"] = as_figure(score)
        return rows
