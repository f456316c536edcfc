"""The options of each part of a codec: names, types, bounds and defaults.

The defaults are those of the published v0.0.1, the format of the offline
releases; :data:`DEFAULTS` has those that v0.0.2 changed.
"""

import math
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from speechbrain_focalcodec.audio.files import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE

# Far beyond any model. They bound the number of modules and the memory of
# inference; weights are compared with the file before they are allocated, see
# checkpoint.match_config.
Size = Annotated[int, Field(ge=1, le=1 << 16)]
Count = Annotated[int, Field(ge=0, le=1 << 16)]
Layers = Annotated[int, Field(ge=1, le=256)]
Heads = Annotated[int, Field(ge=1, le=64)]
Lookahead = Annotated[int, Field(ge=0, le=1024)]
SampleRate = Annotated[int, Field(ge=MIN_SAMPLE_RATE, le=MAX_SAMPLE_RATE)]
Factor = Annotated[int, Field(ge=1, le=64)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
# JSON has lists where the options are tuples.
Sizes = Annotated[
    tuple[Size, ...], Field(min_length=1, max_length=64, strict=False)
]
Factors = Annotated[
    tuple[Factor, ...], Field(min_length=1, max_length=64, strict=False)
]
MAX_TOTAL_FACTOR = 1024


class PartConfig(BaseModel):
    """Options of one part: closed and immutable; no type is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OwnPartConfig(PartConfig):
    """Options of a part that is not in the package, not validated."""

    model_config = ConfigDict(extra="allow")


class WavLMConfig(PartConfig):
    """Options of :class:`~speechbrain_focalcodec.modules.wavlm.WavLM`."""

    hidden_dims: Sizes = (512,) * 7
    kernel_sizes: Sizes = (10, 3, 3, 3, 3, 2, 2)
    strides: Sizes = (5, 2, 2, 2, 2, 2, 2)
    num_layers: Layers = 6
    dim: Size = 1024
    ffn_dim: Size = 4096
    num_heads: Heads = 16
    conv_pos: Size = 128
    conv_pos_groups: Size = 16
    num_buckets: Annotated[int, Field(ge=4, le=1 << 16)] = 320
    max_distance: Size = 800
    dropout: Dropout = 0.0
    causal: bool = False
    window_size: Size = 512
    lookahead_size: Lookahead = 3
    # Of the published code; without effect on the output.
    max_cached_steps: Annotated[int, Field(ge=0)] = 2048
    use_flex_attention: bool = False

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveform (Hz)."""
        return 16000

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def output_dim(self) -> int:
        """Channels of the features."""
        return self.dim

    @property
    def chunk(self) -> int:
        """Causal only: frames that see each other."""
        return 1 + self.lookahead_size

    @model_validator(mode="after")
    def _consistent(self) -> "WavLMConfig":
        layers = {len(self.kernel_sizes), len(self.strides)}
        if layers != {len(self.hidden_dims)}:
            raise ValueError(
                "hidden_dims, kernel_sizes and strides must be equally long"
            )
        if self.dim % self.num_heads or self.dim % self.conv_pos_groups:
            raise ValueError(
                "dim must be a multiple of num_heads and conv_pos_groups"
            )
        # Half of the buckets of each sign hold one distance.
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError("max_distance must exceed num_buckets / 4")
        if self.causal and self.window_size <= self.lookahead_size:
            raise ValueError("window_size must exceed lookahead_size")
        return self


class LogMelConfig(PartConfig):
    """Options of :class:`~speechbrain_focalcodec.modules.mel.LogMel`."""

    sample_rate: SampleRate = 16000
    # The filterbank is not a weight in the file.
    n_mels: Annotated[int, Field(ge=1, le=512)] = 80
    n_fft: Annotated[int, Field(ge=2, le=1 << 15, multiple_of=2)] = 1024
    hop_length: Size = 320
    f_min: Annotated[Finite, Field(ge=0.0)] = 0.0
    f_max: Annotated[Finite, Field(gt=0.0)] = 8000.0
    floor: Annotated[Finite, Field(ge=1e-30)] = 1e-3
    mean: Finite = -3.0
    std: Annotated[Finite, Field(ge=1e-6)] = 2.0
    causal: bool = False

    @property
    def output_dim(self) -> int:
        """Channels of the features."""
        return self.n_mels

    @property
    def chunk(self) -> int:
        """Causal only: frames that see each other."""
        return 1

    @model_validator(mode="after")
    def _consistent(self) -> "LogMelConfig":
        if self.hop_length > self.n_fft:
            raise ValueError("hop_length must not exceed n_fft")
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError("f_min < f_max <= sample_rate / 2 must hold")
        return self


class FocalConfig(PartConfig):
    """Options that compressor and decompressor share."""

    hidden_dims: Sizes = (1024, 512, 256)
    focal_window: Size = 7
    focal_level: Annotated[int, Field(ge=0, le=16)] = 2
    focal_factor: Count = 2
    dropout: Dropout = 0.0
    use_post_norm: bool = False
    use_layerscale: bool = False
    layerscale_init: Finite = 1e-4
    tanhscale_init: Finite = 0.5
    normalize_modulator: bool = False
    causal: bool = False
    window_size: Size = 512

    def _check_factors(self, name: str, factors: tuple[int, ...]) -> None:
        if len(factors) != len(self.hidden_dims):
            raise ValueError(f"{name} must be as long as hidden_dims")
        if math.prod(factors) > MAX_TOTAL_FACTOR:
            raise ValueError(
                f"the product of {name} must be at most {MAX_TOTAL_FACTOR}"
            )


class FocalEncoderConfig(FocalConfig):
    """Options of :class:`FocalEncoder`."""

    input_dim: Size = 1024
    output_dim: Size = 13
    downscale_factors: Factors = (1, 1, 1)

    @model_validator(mode="after")
    def _consistent(self) -> "FocalEncoderConfig":
        self._check_factors("downscale_factors", self.downscale_factors)
        return self


class FocalDecoderConfig(FocalConfig):
    """Options of :class:`FocalDecoder`."""

    hidden_dims: Sizes = (256, 512, 1024)
    input_dim: Size = 13
    output_dim: Size = 1024
    upscale_factors: Factors = (1, 1, 1)
    last_window_size: Size = 512
    lookahead_size: Lookahead = 3

    @property
    def chunk(self) -> int:
        """Causal only: frames that see each other."""
        return 1 + self.lookahead_size

    @model_validator(mode="after")
    def _consistent(self) -> "FocalDecoderConfig":
        self._check_factors("upscale_factors", self.upscale_factors)
        return self


class QuantizerConfig(PartConfig):
    """Options of :class:`BinarySphericalQuantizer`."""

    # With more than 24 bits the entropy loss does not fit in memory.
    codebook_size: Annotated[int, Field(ge=2, le=1 << 24)] = 8192

    @field_validator("codebook_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two")
        return value


class ConvNeXtConfig(PartConfig):
    """Options that the two decoders share."""

    input_dim: Size = 1024
    num_layers: Layers = 8
    dim: Size = 512
    ffn_dim: Size = 1536
    kernel_size: Size = 7
    layerscale_init: Finite | None = None
    hop_length: Size = 320
    causal: bool = False

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, data: Any) -> Any:
        """Accept the keys of the three offline releases.

        These are `input_channels`, and a `padding` that is always half the
        kernel.
        """
        if isinstance(data, dict):
            data = dict(data)
            data.pop("padding", None)
            if "input_channels" in data and "input_dim" not in data:
                data["input_dim"] = data.pop("input_channels")
        return data


class VocosConfig(ConvNeXtConfig):
    """Options of :class:`~speechbrain_focalcodec.modules.vocos.Vocos`."""

    n_fft: Annotated[int, Field(ge=2, le=1 << 16, multiple_of=2)] = 1024
    fade: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> "VocosConfig":
        if self.hop_length > self.n_fft:
            raise ValueError("hop_length must not exceed n_fft")
        most = min(self.hop_length, self.n_fft - self.hop_length)
        if self.fade > (most if self.causal else 0):
            raise ValueError(
                "fade is for a causal Vocos, at most hop_length and n_fft - "
                "hop_length"
            )
        return self


class WaveNeXtConfig(ConvNeXtConfig):
    """Options of :class:`~speechbrain_focalcodec.modules.wavenext.WaveNeXt`."""

    dim: Size = 1024
    ffn_dim: Size = 2048
    hop_length: Size = 480


# The versions of the published package.
VERSIONS = ("0.0.1", "0.0.2")
# Defaults of the versions where they differ.
DECODERS = ("Vocos", "WaveNeXt")
DEFAULTS: dict[str, dict[str, tuple[Any, Any]]] = {
    "compressor": {
        "output_dim": (13, 12),
        "hidden_dims": ((1024, 512, 256), (1024, 1024, 1024)),
        "focal_window": (7, 14),
        "focal_factor": (2, 4),
    },
    "quantizer": {"codebook_size": (8192, 4096)},
    "decompressor": {
        "input_dim": (13, 12),
        "hidden_dims": ((256, 512, 1024), (1024, 1024, 1024)),
        "focal_window": (7, 14),
        "focal_factor": (2, 4),
    },
}
# Options that v0.0.1 does not have.
NEW_OPTIONS = {
    "causal",
    "last_window_size",
    "lookahead_size",
    "max_cached_steps",
    "tanhscale_init",
    "use_flex_attention",
    "window_size",
}
# Options of the decoder that v0.0.2 has renamed or removed.
OLD_OPTIONS = {"input_channels", "padding"}
