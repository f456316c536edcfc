"""The base class of the published decoders."""

import torch

from speechbrain_focalcodec.compat.part import Part

__all__ = ["Decoder"]


class Decoder(Part):
    """Features to waveform, `hop_length` samples per frame."""

    chunk_size = 1
    hop_length: int

    @property
    def upsample_factor(self) -> int:
        """Samples per frame."""
        return self.hop_length

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of samples for numbers of frames, int64 [B]."""
        return lengths * self.hop_length
