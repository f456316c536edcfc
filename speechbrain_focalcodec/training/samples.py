"""Utterances of validation, to listen to and to look at."""

from pathlib import Path

import torch

from speechbrain_focalcodec.audio.files import write_audio
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.training.run_log import RunLog
from speechbrain_focalcodec.utils.plotting import (
    plot_features,
    plot_spectrograms,
)

__all__ = ["Samples"]


class Samples:
    """Keeps the first utterances of a validation until they are written.

    Arguments
    ---------
    limit : int
        How many.

    Example
    -------
    >>> samples = Samples(limit=2)
    >>> samples.wanted
    True
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._kept: list[tuple[str, dict[str, torch.Tensor]]] = []

    @property
    def wanted(self) -> bool:
        """Whether more are wanted."""
        return len(self._kept) < self.limit

    def clear(self) -> None:
        """Start anew."""
        self._kept.clear()

    def keep(
        self,
        ids: list[str],
        outputs: dict[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Keep utterances of a batch, while more are wanted.

        Arguments
        ---------
        ids : list of str
            Of the utterances.
        outputs : dict
            Waveforms [B, T] at the codec's output rate, or features
            [B, T, C], and their lengths, by their names.
        """
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
        """Write what was kept: waveforms as audio, and one picture each.

        Arguments
        ---------
        folder : Path
            Where to write; made when there is something.
        codec : FocalCodec
            Knows the rates.
        log : RunLog
            Gets the same.
        step : int
            The step of training.
        """
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
