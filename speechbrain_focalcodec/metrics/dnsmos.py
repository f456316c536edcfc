"""DNSMOS P.835 and P.808: predicted opinion scores, by speechmos."""

from collections.abc import Sequence
from pathlib import Path

from speechbrain_focalcodec.metrics.base import (
    SAMPLE_RATE,
    Column,
    Metric,
    Row,
    Sample,
)
from speechbrain_focalcodec.metrics.values import as_figure, is_measurable
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Dnsmos"]

# Names of the ratings in speechmos, and of our fields.
RATINGS = {
    "ovrl_mos": "dnsmos_ovrl",
    "sig_mos": "dnsmos_sig",
    "bak_mos": "dnsmos_bak",
    "p808_mos": "dnsmos_p808",
}


class Dnsmos(Metric):
    """DNSMOS P.835 (overall, signal, background) and P.808 of the output.

    The extra ``mos`` includes the models. Samples beyond ±1 are clipped.
    """

    name = "dnsmos"
    converts = True
    columns = tuple(
        Column(f"dnsmos_{key}", f"DNSMOS {label}", "higher", f"dnsmos_{key}")
        for key, label in (
            ("ovrl", "OVRL"),
            ("sig", "SIG"),
            ("bak", "BAK"),
            ("p808", "P.808"),
        )
    )

    def __init__(self):
        # speechmos does not declare its dependencies.
        for module in ("speechmos", "librosa", "onnxruntime", "requests"):
            import_extra(module, "mos")
        library = import_extra("speechmos.dnsmos", "mos")
        folder = Path(str(library.__file__)).parent / "dnsmos_models"
        self.model = library.DNSMOS(
            str(folder / "sig_bak_ovr.onnx"), str(folder / "model_v8.onnx")
        )

    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        return [self._measure(sample) for sample in samples]

    def _measure(self, sample: Sample) -> Row:
        if not is_measurable(sample.output):
            return dict.fromkeys(RATINGS.values())
        wav = sample.output.clamp(-1, 1).numpy()
        ratings = self.model(wav, SAMPLE_RATE, False)
        return {name: as_figure(ratings[key]) for key, name in RATINGS.items()}
