"""Samples of validation: audio, spectrograms and features."""

from pathlib import Path
from typing import Any

import torch

from speechbrain_focalcodec.audio.files import (
    resample,
    resampled_length,
    write_audio,
)
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.training.run_log import RunLog
from speechbrain_focalcodec.utils.plotting import (
    plot_features,
    plot_spectrograms,
)

__all__ = ["Samples", "shown_outputs"]


class Samples:
    """Keeps the first `limit` utterances of a validation and writes them."""

    def __init__(self, limit: int):
        self.limit = limit
        self._kept: list[tuple[str, dict[str, torch.Tensor]]] = []

    @property
    def wanted(self) -> bool:
        """Whether fewer than `limit` utterances are kept."""
        return len(self._kept) < self.limit

    def clear(self) -> None:
        """Remove all utterances."""
        self._kept.clear()

    def keep(
        self,
        ids: list[str],
        outputs: dict[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Keep waveforms [B, T] or features [B, T, C], with their lengths."""
        for i, name in enumerate(ids):
            if not self.wanted:
                return
            kept = {
                # The output of a diverged model is written as silence.
                kind: x[i, : int(lengths[i])]
                .detach()
                .float()
                .nan_to_num(posinf=0.0, neginf=0.0)
                .cpu()
                for kind, (x, lengths) in outputs.items()
            }
            self._kept.append((name, kept))

    def write(
        self, folder: Path, codec: FocalCodec, log: RunLog, step: int
    ) -> None:
        """Write waveforms as audio and one figure for each utterance."""
        rate = codec.sample_rate_output
        for utt_id, kept in self._kept:
            picture = folder / f"{utt_id}.png"
            if any(x.ndim > 1 for x in kept.values()):
                frame_rate = codec.sample_rate_input / codec.encoder.hop_length
                plot_features(picture, kept, frame_rate)
            else:
                for kind, sig in kept.items():
                    name = f"{utt_id}_{kind}"
                    write_audio(folder / f"{name}.wav", sig, rate)
                    log.audio(name, sig, rate, step)
                plot_spectrograms(picture, kept, rate)
            log.picture(utt_id, picture, step)


def shown_outputs(
    brain: Any, outputs: dict[str, Any], batch: Any
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Waveforms, or features without a decoder, and lengths, by name."""
    codec = brain.codec
    if brain.decodes:
        lengths = outputs["lengths"]
        return {
            "original": (outputs["target"], lengths),
            "reconstruction": (outputs["estimate"], lengths),
        }
    if not brain.quantizes:
        return {}
    frames = outputs["frames"]
    feats, qfeats = outputs["feats"], outputs["qfeats"]
    if not brain.audible:
        return {
            "features": (feats, frames),
            "quantized_features": (qfeats, frames),
        }
    sig, lengths = brain.signals(batch)
    rates = codec.sample_rate_input, codec.sample_rate_output
    return {
        "original": (resample(sig, *rates), resampled_length(lengths, *rates)),
        "unquantized": codec.feats_to_sig(feats, frames),
        "reconstruction": codec.feats_to_sig(qfeats.float(), frames),
    }
