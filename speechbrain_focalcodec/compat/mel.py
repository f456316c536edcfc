"""The encoder of the bundled models; the published package has none."""

import inspect
from typing import Any, ClassVar

from speechbrain_focalcodec.compat.part import Part
from speechbrain_focalcodec.modules import mel

__all__ = ["LogMel"]


class LogMel(Part, mel.LogMel):
    """Waveform to log-mel features, see
    :class:`~speechbrain_focalcodec.modules.mel.LogMel`.
    """

    defaults: ClassVar[dict[str, Any]] = {
        name: parameter.default
        for name, parameter in inspect.signature(mel.LogMel).parameters.items()
    }

    @property
    def downsample_factor(self) -> int:
        """Samples per frame."""
        return self.hop_length

    chunk_size = downsample_factor
