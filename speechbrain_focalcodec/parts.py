"""The table of parts that a released model can be made of.

A part is one entry: its role, its class and the class of its options. Layers
that ONNX cannot trace have substitutes in `onnx/layers.py` and
`onnx/step_layers.py`.
"""

from dataclasses import dataclass
from pydoc import locate
from typing import Any

from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.bsq import BinarySphericalQuantizer
from speechbrain_focalcodec.modules.compressor import FocalDecoder, FocalEncoder
from speechbrain_focalcodec.modules.mel import LogMel
from speechbrain_focalcodec.modules.part import Part
from speechbrain_focalcodec.modules.part_configs import (
    FocalDecoderConfig,
    FocalEncoderConfig,
    LogMelConfig,
    PartConfig,
    QuantizerConfig,
    VocosConfig,
    WaveNeXtConfig,
    WavLMConfig,
)
from speechbrain_focalcodec.modules.vocos import Vocos
from speechbrain_focalcodec.modules.wavenext import WaveNeXt
from speechbrain_focalcodec.modules.wavlm import WavLM

__all__ = ["PARTS", "ROLES", "Kind", "build_part", "name_of"]

ROLES = ("encoder", "compressor", "quantizer", "decompressor", "decoder")


@dataclass(frozen=True)
class Kind:
    """A part that `config.json` can name: role, class, class of its options."""

    role: str
    module: type[Part]
    config: type[PartConfig]


KINDS = (
    Kind("encoder", WavLM, WavLMConfig),
    Kind("encoder", LogMel, LogMelConfig),
    Kind("compressor", FocalEncoder, FocalEncoderConfig),
    Kind("quantizer", BinarySphericalQuantizer, QuantizerConfig),
    Kind("decompressor", FocalDecoder, FocalDecoderConfig),
    Kind("decoder", Vocos, VocosConfig),
    Kind("decoder", WaveNeXt, WaveNeXtConfig),
)
PARTS = {
    role: {kind.module.__name__: kind for kind in KINDS if kind.role == role}
    for role in ROLES
}


def build_part(role: str, name: str, config: PartConfig) -> Any:
    """Build a part from its options.

    `name` is a key of :data:`PARTS` or the import path of another subclass of
    Part. Raises ConfigError if that cannot be imported or is no part.
    """
    options = config.model_dump()
    if name in PARTS[role]:
        part = PARTS[role][name].module(**options)
    else:
        cls: Any = locate(name)
        if not (isinstance(cls, type) and issubclass(cls, Part)):
            raise ConfigError(
                f"{role}_name: {name} is no subclass of {Part.__module__}.Part "
                "that can be imported; is its folder on PYTHONPATH?"
            )
        part = cls(**options)
    part.options = config.model_dump(exclude_unset=True)
    return part


def name_of(role: str, part: Part | PartConfig) -> str:
    """Name of a part, or of its options, in :data:`PARTS`; else its import
    path.
    """
    cls = type(part)
    for name, kind in PARTS[role].items():
        if cls in (kind.module, kind.config):
            return name
    return f"{cls.__module__}.{cls.__qualname__}"
