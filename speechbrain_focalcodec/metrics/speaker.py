"""Speaker similarity: cosine similarity of voice embeddings."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from speechbrain_focalcodec.metrics.base import Column, Metric, Row, Sample
from speechbrain_focalcodec.metrics.originals import Originals
from speechbrain_focalcodec.metrics.values import as_figure, is_measurable
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["ResemblyzerSimilarity", "SpeakerSimilarity"]

# Scale of 16-bit samples, which voice detection uses.
PCM_16 = 32767


class SpeakerSimilarity(Metric):
    """Base class of metrics that compare voice embeddings.

    The output is compared with the original, or with the target speaker's
    speech in voice conversion.
    """

    converts = True

    def __init__(self):
        self.originals = Originals(self._embed_all)

    @abstractmethod
    def embed(self, sig: torch.Tensor) -> torch.Tensor | None:
        """Embedding [C] of a finite waveform [T] at `SAMPLE_RATE`.

        None if there is too little speech.
        """

    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        embeddings = self.originals(
            [sample.id for sample in samples],
            [
                sample.original if sample.voice is None else sample.voice
                for sample in samples
            ],
        )
        field = self.columns[0].numerator
        rows: list[Row] = []
        outputs = self._embed_all([sample.output for sample in samples])
        for target, output in zip(embeddings, outputs, strict=True):
            value = None
            if target is not None and output is not None:
                value = as_figure(F.cosine_similarity(target, output, dim=0))
            rows.append({field: value})
        return rows

    @torch.inference_mode()
    def _embed_all(self, sigs: list[torch.Tensor]) -> list[torch.Tensor | None]:
        embeddings = []
        for sig in sigs:
            usable = is_measurable(sig) and bool(sig.any())
            embeddings.append(self.embed(sig) if usable else None)
        return embeddings


class ResemblyzerSimilarity(SpeakerSimilarity):
    """Similarity by Resemblyzer, which includes its model.

    Needs the extra ``speaker``. The library normalises the volume and removes
    silence.

    Arguments
    ---------
    device : str
        Device to run on.
    """

    name = "speaker"
    columns = (
        Column(
            "speaker_similarity",
            "Speaker similarity",
            "higher",
            "speaker_similarity",
            digits=3,
        ),
    )

    def __init__(self, device: str = "cpu"):
        super().__init__()
        with warnings.catch_warnings():
            # From a dependency.
            warnings.filterwarnings("ignore", message="pkg_resources is depr")
            self.library = import_extra("resemblyzer", "speaker")
        # It calls torch.load with the default weights_only=True.
        self.encoder = self.library.VoiceEncoder(device, verbose=False).eval()

    def embed(self, sig: torch.Tensor) -> torch.Tensor | None:
        # Voice detection uses 16-bit samples, which would overflow.
        wav = sig.clamp(-1, 1).numpy()
        if not (abs(wav) * PCM_16 >= 0.5).any():
            return None
        wav = self.library.preprocess_wav(wav)
        if not len(wav):  # only silence
            return None
        return torch.from_numpy(self.encoder.embed_utterance(wav))
