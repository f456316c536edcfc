"""What the published decoders have in common."""

import torch

from speechbrain_focalcodec.compat.part import Part

__all__ = ["Decoder"]


class Decoder(Part):
    """Features to waveform: `hop_length` samples a frame."""

    chunk_size = 1
    hop_length: int

    @property
    def upsample_factor(self) -> int:
        """Samples a frame."""
        return self.hop_length

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Number of samples for a number of frames.

        Arguments
        ---------
        lengths : torch.Tensor
            Frames, int64 [B].

        Returns
        -------
        torch.Tensor
            Samples, int64 [B].
        """
        return lengths * self.hop_length
