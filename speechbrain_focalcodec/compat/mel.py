"""The encoder of the bundled models, which the published package has not."""

import inspect
from typing import Any, ClassVar

from speechbrain_focalcodec.compat.part import Part
from speechbrain_focalcodec.modules import mel

__all__ = ["LogMel"]


class LogMel(Part, mel.LogMel):
    """Waveform to log-mel features, see
    :class:`~speechbrain_focalcodec.modules.mel.LogMel`.

    Example
    -------
    >>> import torch
    >>> feats, *state = LogMel()(torch.randn(2, 16000))
    >>> feats.shape
    torch.Size([2, 50, 80])
    """

    defaults: ClassVar[dict[str, Any]] = {
        name: parameter.default
        for name, parameter in inspect.signature(mel.LogMel).parameters.items()
    }

    @property
    def downsample_factor(self) -> int:
        """Samples a frame."""
        return self.hop_length

    chunk_size = downsample_factor
