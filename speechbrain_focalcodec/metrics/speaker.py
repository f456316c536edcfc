"""Speaker similarity: how close the voice is, by an embedding of it."""

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

# How samples are quantized before voice is looked for.
PCM_16 = 32767


class SpeakerSimilarity(Metric):
    """Cosine similarity of the embeddings of two voices.

    The output is compared with the original; in voice conversion with the
    voice that should be heard.
    """

    converts = True

    def __init__(self):
        self.originals = Originals(self._embed_all)

    @abstractmethod
    def embed(self, sig: torch.Tensor) -> torch.Tensor | None:
        """Embed a voice.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [T] of finite samples, at `SAMPLE_RATE`.

        Returns
        -------
        torch.Tensor or None
            Embedding [C]; ``None`` where there is too little speech.
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
        for right, output in zip(embeddings, outputs, strict=True):
            value = None
            if right is not None and output is not None:
                value = as_figure(F.cosine_similarity(right, output, dim=0))
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
    """Similarity by Resemblyzer, whose model comes with it.

    Needs the extra ``speaker``. Volume and silences are evened out first, as
    the library does.

    Arguments
    ---------
    device : str
        Where it runs.

    Example
    -------
    >>> silence = torch.zeros(16000)
    >>> ResemblyzerSimilarity()([Sample("a", silence, silence)])
    [{'speaker_similarity': None}]
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
            # Its dependencies' own affair.
            warnings.filterwarnings("ignore", message="pkg_resources is depr")
            self.library = import_extra("resemblyzer", "speaker")
        # It leaves `weights_only` of torch.load at its default, which is true.
        self.encoder = self.library.VoiceEncoder(device, verbose=False).eval()

    def embed(self, sig: torch.Tensor) -> torch.Tensor | None:
        # The detection of voice works on 16 bits, and would wrap around.
        wav = sig.clamp(-1, 1).numpy()
        if not (abs(wav) * PCM_16 >= 0.5).any():
            return None
        wav = self.library.preprocess_wav(wav)
        if not len(wav):  # nothing but silence
            return None
        return torch.from_numpy(self.encoder.embed_utterance(wav))
