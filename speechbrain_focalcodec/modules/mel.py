"""Log-mel encoder: a fixed front end for small models.

It replaces WavLM where 300 MB of encoder are too much: 80 mel bands at 50 Hz,
as logarithms that are normalised by two fixed numbers. It has no trained
weights.
"""

import torch
from torch.nn import functional as F

from speechbrain_focalcodec.modules.causal import StreamState, extend_left
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.modules.part import Encoder
from speechbrain_focalcodec.modules.precision import ExactBuffers
from speechbrain_focalcodec.utils.extras import import_torchaudio

__all__ = ["LogMel"]


class LogMel(ExactBuffers, Encoder):
    """Waveform to normalised log-mel features.

    Frame ``i`` is centred on sample ``hop_length * (i + 1/2)``, like the frames
    of the Vocos decoder, with zeros beyond both ends: ``n`` samples become
    ``ceil(n / hop_length)`` frames. Causal, frame ``i`` ends with sample
    ``hop_length * (i + 1)``.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the waveform (Hz).
    n_mels : int
        Number of bands, the feature dimension.
    n_fft : int
        Window and FFT size (samples).
    hop_length : int
        Hop length (samples).
    f_min, f_max : float
        Lowest and highest frequency (Hz).
    floor : float
        Added to the magnitudes. Levels well below it look alike, so no bits
        are spent on background noise.
    mean, std : float
        Fixed statistics that normalise the logarithm.
    causal : bool
        Whether a frame sees no samples after its own hop.
    """

    window: torch.Tensor
    filterbank: torch.Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 80,
        n_fft: int = 1024,
        hop_length: int = 320,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        floor: float = 1e-3,
        mean: float = -3.0,
        std: float = 2.0,
        causal: bool = False,
    ):
        super().__init__()
        self.causal = causal
        self.sample_rate = sample_rate
        self.output_dim = n_mels
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.floor = floor
        self.mean = mean
        self.std = std
        self.register_buffer(
            "window", torch.hann_window(n_fft), persistent=False
        )
        self.register_buffer(
            "filterbank",
            import_torchaudio().functional.melscale_fbanks(
                n_fft // 2 + 1,
                f_min,
                f_max,
                n_mels,
                sample_rate,
                norm="slaney",
                mel_scale="slaney",
            ),
            persistent=False,
        )

    @property
    def margin(self) -> int:  # type: ignore[override]
        """Frames next to a cut that see zeros in place of samples."""
        side = self.n_fft - self.hop_length
        if not self.causal:
            side = -(-side // 2)
        return -(-side // self.hop_length)

    def forward(
        self,
        sig: torch.Tensor,
        lengths: torch.Tensor | None = None,
        state: StreamState | None = None,
    ) -> torch.Tensor:
        """Waveform [B, T] to features [B, ceil(T / hop_length), n_mels].

        In a stream, all chunks but the last hold a multiple of `hop_length`
        samples.
        """
        sig = zero_beyond(sig, lengths)
        side = self.n_fft - self.hop_length
        tail = -sig.shape[1] % self.hop_length
        if self.causal:
            sig = extend_left(sig[..., None], side, state, replicate=False)
            sig = F.pad(sig[..., 0], (0, tail))
        else:
            sig = F.pad(sig, (side // 2, tail + side - side // 2))
        # Reduced precision loses the quiet bands: see autocast.
        with torch.autocast(sig.device.type, enabled=False):
            spectrum = torch.stft(
                sig.to(self.window.dtype),
                self.n_fft,
                self.hop_length,
                window=self.window,
                center=False,
                return_complex=True,
            )
            mel = spectrum.abs().transpose(1, 2) @ self.filterbank
            return ((mel + self.floor).log() - self.mean) / self.std
