"""Distance of the activations of a speech recogniser (deep feature loss).

At low bitrates a codec cannot keep the whole spectrogram. The layers of a
recogniser represent the parts that words depend on (Germain et al., 2019;
Radford et al., 2022).
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.metrics.wer import load_whisper
from speechbrain_focalcodec.modules.masking import length_mask
from speechbrain_focalcodec.training.distributed import mean_over_processes

__all__ = ["WhisperLoss"]

_SAMPLE_RATE = 16000
_SAMPLES_A_FRAME = 320
_FRAMES = 1500


class WhisperLoss(nn.Module):
    """Distance of the activations of Whisper's encoder.

    For each layer, the mean squared error divided by the variance of the
    target's activations. A word error rate of the same Whisper is too
    optimistic for a model trained on this loss: evaluate with another
    recogniser.

    Arguments
    ---------
    checkpoint_path : str or Path
        Local checkpoint of openai-whisper, such as ``tiny.en.pt``, read with
        ``weights_only=True``. Nothing is downloaded. Needs the extra
        ``whisper``.
    sample_rate : int
        Sample rate of the waveforms; must be 16 kHz.

    Raises
    ------
    CheckpointError
        If the file is missing, not given, or not a Whisper checkpoint.
    ValueError
        If the sample rate is not 16 kHz.
    """

    def __init__(
        self,
        checkpoint_path: str | Path | None,
        sample_rate: int = _SAMPLE_RATE,
    ):
        super().__init__()
        if checkpoint_path is None:
            raise CheckpointError(
                "whisper_checkpoint: give the path of a checkpoint of "
                "openai-whisper, such as --whisper_checkpoint=tiny.en.pt"
            )
        if sample_rate != _SAMPLE_RATE:
            raise ValueError(
                f"WhisperLoss is for waveforms at 16000 Hz, not {sample_rate}"
            )
        model = load_whisper(checkpoint_path, "cpu")
        self.n_mels = model.dims.n_mels
        self.encoder = model.encoder.eval().requires_grad_(False)

    def forward(
        self,
        estimate: torch.Tensor,
        target: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss.

        Arguments
        ---------
        estimate, target : torch.Tensor
            Waveforms [B, T].
        lengths : torch.Tensor, optional
            Number of samples, int64 [B]. Frames in the padding do not count,
            but are attended to, like the silence that Whisper pads with.

        Returns
        -------
        torch.Tensor
            Scalar: 0 for equal waveforms, about 1 or more for unrelated ones.
        """
        with torch.no_grad():
            wanted = self._activations(target)
        given = self._activations(estimate)
        valid = _valid_frames(wanted[0], lengths)
        total = estimate.new_zeros(())
        for given_layer, wanted_layer in zip(given, wanted, strict=True):
            x, y = given_layer[valid], wanted_layer[valid]  # [frames, C]
            error = mean_over_processes((x - y).square().mean(), x.numel())
            mean = mean_over_processes(y.mean(dim=0), len(y))
            centred = y - mean
            total = total + error / mean_over_processes(
                centred.square().mean(), y.numel()
            ).clamp(min=1e-6)
        return total / len(given)

    def _activations(self, sig: torch.Tensor) -> list[torch.Tensor]:
        """Output of each layer, [B, N, C] in float32."""
        encoder = self.encoder
        sig = sig[:, : _FRAMES * _SAMPLES_A_FRAME]
        # The encoder halves the number of frames.
        sig = F.pad(sig, (0, -sig.shape[1] % _SAMPLES_A_FRAME))
        with torch.autocast(sig.device.type, enabled=False):
            mel = _log_mel(sig.float(), self.n_mels)
        x = F.gelu(encoder.conv1(mel))
        x = F.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.positional_embedding[: x.shape[1]].to(x)
        maps = []
        for block in encoder.blocks:
            x = block(x)
            # A few channels of Whisper are far larger than all others.
            maps.append(F.layer_norm(x.float(), x.shape[-1:]))
        return maps


def _valid_frames(
    x: torch.Tensor, lengths: torch.Tensor | None
) -> torch.Tensor:
    """Mask of the valid frames of x [B, N, C], bool [B, N]."""
    if lengths is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return length_mask(-(-lengths // _SAMPLES_A_FRAME), x.shape[1])


def _log_mel(sig: torch.Tensor, n_mels: int) -> torch.Tensor:
    from whisper.audio import log_mel_spectrogram

    # One utterance at a time: the floor depends on the loudest point of the
    # whole input.
    return torch.stack([log_mel_spectrogram(x, n_mels) for x in sig])
