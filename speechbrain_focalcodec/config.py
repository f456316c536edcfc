"""The closed schema of a model's `config.json`.

A configuration names the five parts and gives the options of each. The names
are looked up in a fixed table and every option is known here: what is not in
the schema is an error that names it, so a downloaded file can select nothing
but these parts. Missing options take the values of the released models.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from speechbrain_focalcodec.errors import ConfigError

__all__ = ["CodecConfig", "read_config"]

MAX_CONFIG_BYTES = 1 << 20

# Bounds keep a malicious file from asking for more memory than any model has.
Size = Annotated[int, Field(ge=1, le=1 << 16)]
Count = Annotated[int, Field(ge=0, le=1 << 16)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=64)]


class PartConfig(BaseModel):
    """Options of one part: closed and immutable.

    Example
    -------
    >>> PartConfig()
    PartConfig()
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class WavLMConfig(PartConfig):
    """Options of :class:`~speechbrain_focalcodec.modules.wavlm.WavLM`.

    Example
    -------
    >>> WavLMConfig().num_layers
    6
    """

    hidden_dims: Sizes = (512,) * 7
    kernel_sizes: Sizes = (10, 3, 3, 3, 3, 2, 2)
    strides: Sizes = (5, 2, 2, 2, 2, 2, 2)
    num_layers: Count = 6
    dim: Size = 1024
    ffn_dim: Size = 4096
    num_heads: Size = 16
    conv_pos: Size = 128
    conv_pos_groups: Size = 16
    num_buckets: Annotated[int, Field(ge=4, le=1 << 16)] = 320
    max_distance: Size = 800
    dropout: Dropout = 0.0
    causal: bool = False
    window_size: Size = 512
    lookahead_size: Count = 3
    # The published code's table of positions; here it has no limit.
    max_cached_steps: Count = 2048

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
        if self.causal and self.window_size <= self.lookahead_size:
            raise ValueError("window_size must exceed lookahead_size")
        return self


class LogMelConfig(PartConfig):
    """Options of :class:`~speechbrain_focalcodec.modules.mel.LogMel`.

    Example
    -------
    >>> LogMelConfig().n_mels
    80
    """

    sample_rate: Annotated[int, Field(ge=1000, le=384000)] = 16000
    n_mels: Size = 80
    n_fft: Annotated[int, Field(ge=2, le=1 << 16, multiple_of=2)] = 1024
    hop_length: Size = 320
    f_min: Annotated[Finite, Field(ge=0.0)] = 0.0
    f_max: Annotated[Finite, Field(gt=0.0)] = 8000.0
    floor: Annotated[Finite, Field(gt=0.0)] = 1e-3
    mean: Finite = -3.0
    std: Annotated[Finite, Field(gt=0.0)] = 2.0

    @model_validator(mode="after")
    def _consistent(self) -> "LogMelConfig":
        if self.hop_length > self.n_fft:
            raise ValueError("hop_length must not exceed n_fft")
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError("f_min < f_max <= sample_rate / 2 must hold")
        return self


class FocalConfig(PartConfig):
    """What compressor and decompressor share.

    Example
    -------
    >>> FocalConfig(causal=True).focal_window
    14
    """

    hidden_dims: Sizes = (1024, 512, 256)
    focal_window: Size = 7
    focal_level: Count = 2
    focal_factor: Count = 2
    dropout: Dropout = 0.0
    use_post_norm: bool = False
    use_layerscale: bool = False
    layerscale_init: Finite = 1e-4
    normalize_modulator: bool = False
    causal: bool = False
    window_size: Size = 512

    @model_validator(mode="before")
    @classmethod
    def _causal_defaults(cls, data: Any) -> Any:
        """The causal releases have other sizes than the offline ones."""
        if isinstance(data, dict) and data.get("causal") is True:
            released = {
                "hidden_dims": (1024, 1024, 1024),
                "focal_window": 14,
                "focal_factor": 4,
            }
            return {**released, **data}
        return data

    def _check_factors(self, name: str, factors: tuple[int, ...]) -> None:
        if len(factors) != len(self.hidden_dims):
            raise ValueError(f"{name} must be as long as hidden_dims")


class FocalEncoderConfig(FocalConfig):
    """Options of
    :class:`~speechbrain_focalcodec.modules.compressor.FocalEncoder`.

    Example
    -------
    >>> FocalEncoderConfig().output_dim
    13
    """

    input_dim: Size = 1024
    output_dim: Size = 13
    downscale_factors: Sizes = (1, 1, 1)

    @model_validator(mode="after")
    def _consistent(self) -> "FocalEncoderConfig":
        self._check_factors("downscale_factors", self.downscale_factors)
        return self


class FocalDecoderConfig(FocalConfig):
    """Options of
    :class:`~speechbrain_focalcodec.modules.compressor.FocalDecoder`.

    Example
    -------
    >>> FocalDecoderConfig().hidden_dims
    (256, 512, 1024)
    """

    hidden_dims: Sizes = (256, 512, 1024)
    input_dim: Size = 13
    output_dim: Size = 1024
    upscale_factors: Sizes = (1, 1, 1)
    last_window_size: Size = 512
    lookahead_size: Count = 3

    @model_validator(mode="after")
    def _consistent(self) -> "FocalDecoderConfig":
        self._check_factors("upscale_factors", self.upscale_factors)
        return self


class QuantizerConfig(PartConfig):
    """Options of
    :class:`~speechbrain_focalcodec.modules.bsq.BinarySphericalQuantizer`.

    Example
    -------
    >>> QuantizerConfig().codebook_size
    8192
    """

    # 24 bits: the most whose entropy loss still fits in memory.
    codebook_size: Annotated[int, Field(ge=2, le=1 << 24)] = 8192

    @field_validator("codebook_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two")
        return value


class ConvNeXtConfig(PartConfig):
    """What the two decoders share.

    Example
    -------
    >>> ConvNeXtConfig().kernel_size
    7
    """

    input_dim: Size = 1024
    num_layers: Size = 8
    dim: Size = 512
    ffn_dim: Size = 1536
    kernel_size: Size = 7
    layerscale_init: Finite | None = None
    hop_length: Size = 320
    causal: bool = False

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, data: Any) -> Any:
        """The three offline releases name it `input_channels`, and carry a
        `padding` that is always half the kernel.
        """
        if isinstance(data, dict):
            data = dict(data)
            data.pop("padding", None)
            if "input_channels" in data and "input_dim" not in data:
                data["input_dim"] = data.pop("input_channels")
        return data


class VocosConfig(ConvNeXtConfig):
    """Options of :class:`~speechbrain_focalcodec.modules.vocos.Vocos`.

    Example
    -------
    >>> VocosConfig(input_channels=80).input_dim
    80
    """

    n_fft: Annotated[int, Field(ge=2, le=1 << 16, multiple_of=2)] = 1024

    @model_validator(mode="after")
    def _consistent(self) -> "VocosConfig":
        if self.hop_length > self.n_fft:
            raise ValueError("hop_length must not exceed n_fft")
        return self


class WaveNeXtConfig(ConvNeXtConfig):
    """Options of :class:`~speechbrain_focalcodec.modules.wavenext.WaveNeXt`.

    Example
    -------
    >>> WaveNeXtConfig().hop_length
    480
    """

    dim: Size = 1024
    ffn_dim: Size = 2048
    hop_length: Size = 480
    causal: bool = True


PART_CONFIGS: dict[str, dict[str, type[PartConfig]]] = {
    "encoder": {"WavLM": WavLMConfig, "LogMel": LogMelConfig},
    "compressor": {"FocalEncoder": FocalEncoderConfig},
    "quantizer": {"BinarySphericalQuantizer": QuantizerConfig},
    "decompressor": {"FocalDecoder": FocalDecoderConfig},
    "decoder": {"Vocos": VocosConfig, "WaveNeXt": WaveNeXtConfig},
}


class CodecConfig(BaseModel):
    """Configuration of a whole codec, in the layout of `config.json`.

    Build it with :meth:`parse`, whose errors name the key at fault.

    Example
    -------
    >>> config = CodecConfig.parse({})
    >>> config.encoder_name, config.quantizer_config.codebook_size
    ('WavLM', 8192)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder_name: Literal["WavLM", "LogMel"] = "WavLM"
    encoder_config: WavLMConfig | LogMelConfig = Field(
        default_factory=dict, validate_default=True
    )
    compressor_name: Literal["FocalEncoder"] = "FocalEncoder"
    compressor_config: FocalEncoderConfig = Field(
        default_factory=dict, validate_default=True
    )
    quantizer_name: Literal["BinarySphericalQuantizer"] = (
        "BinarySphericalQuantizer"
    )
    quantizer_config: QuantizerConfig = Field(
        default_factory=dict, validate_default=True
    )
    decompressor_name: Literal["FocalDecoder"] = "FocalDecoder"
    decompressor_config: FocalDecoderConfig = Field(
        default_factory=dict, validate_default=True
    )
    decoder_name: Literal["Vocos", "WaveNeXt"] = "Vocos"
    decoder_config: VocosConfig | WaveNeXtConfig = Field(
        default_factory=dict, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        """Validate a part's options by the class its name selects."""
        role = (info.field_name or "").removesuffix("_config")
        if role not in PART_CONFIGS or not isinstance(value, dict):
            return value
        name = info.data.get(f"{role}_name")
        if name is None:  # the name itself was refused
            return value
        return PART_CONFIGS[role][name].model_validate(value)

    @model_validator(mode="after")
    def _fits_together(self) -> "CodecConfig":
        encoder, decoder = self.encoder_config, self.decoder_config
        compressor = self.compressor_config
        decompressor = self.decompressor_config
        feature_dim = (
            encoder.dim if isinstance(encoder, WavLMConfig) else encoder.n_mels
        )
        bits = self.quantizer_config.codebook_size.bit_length() - 1
        for name, got, source, needed in (
            ("compressor_config.input_dim", compressor.input_dim)
            + ("the encoder's features", feature_dim),
            ("compressor_config.output_dim", compressor.output_dim)
            + ("the bits of quantizer_config.codebook_size", bits),
            ("decompressor_config.input_dim", decompressor.input_dim)
            + ("the bits of quantizer_config.codebook_size", bits),
            ("decompressor_config.output_dim", decompressor.output_dim)
            + ("the encoder's features", feature_dim),
            ("decoder_config.input_dim", decoder.input_dim)
            + ("the encoder's features", feature_dim),
        ):
            if got != needed:
                raise ValueError(f"{name} is {got}, but {source} have {needed}")
        down = math.prod(compressor.downscale_factors)
        up = math.prod(decompressor.upscale_factors)
        if down != up:
            raise ValueError(
                "the products of compressor_config.downscale_factors and "
                f"decompressor_config.upscale_factors differ: {down}, {up}"
            )
        return self

    @classmethod
    def parse(
        cls, data: Any, source: str | Path = "the configuration"
    ) -> "CodecConfig":
        """Validate a configuration.

        Arguments
        ---------
        data : dict or CodecConfig
            Content of `config.json`.
        source : str or Path
            Where it comes from, for the message.

        Returns
        -------
        CodecConfig
            The configuration.

        Raises
        ------
        ConfigError
            If a key is unknown, a value is out of range or parts do not fit;
            the message names the key.

        Example
        -------
        >>> CodecConfig.parse({"decoder_config": {"dimm": 512}})
        Traceback (most recent call last):
        ...
        speechbrain_focalcodec.errors.ConfigError: the configuration: \
decoder_config.dimm: unknown key
        """
        if isinstance(data, cls):
            return data
        if not isinstance(data, dict):
            raise ConfigError(
                f"{source}: expected a JSON object, got {type(data).__name__}"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = "; ".join(map(_describe, error.errors()))
            raise ConfigError(f"{source}: {problems}") from None

    def to_dict(self) -> dict[str, Any]:
        """The configuration as `config.json` holds it.

        Options that were not given and have their default are left out, so a
        file that was read is written back with the same keys.

        Returns
        -------
        dict
            JSON-able.
        """
        data: dict[str, Any] = {}
        for role in PART_CONFIGS:
            data[f"{role}_name"] = getattr(self, f"{role}_name")
            part = getattr(self, f"{role}_config")
            data[f"{role}_config"] = part.model_dump(
                mode="json", exclude_unset=True
            )
        return data


def _describe(error: Any) -> str:
    """One problem of a configuration, with the path of its key."""
    # Names of schema classes in the path mean nothing to a reader.
    path = ".".join(
        str(part)
        for part in error["loc"]
        if not (isinstance(part, str) and part.endswith("Config"))
    )
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def read_config(path: str | Path) -> CodecConfig:
    """Read and validate a `config.json`.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    CodecConfig
        The configuration.

    Raises
    ------
    ConfigError
        If the file is missing, no JSON, or does not fit the schema.

    Example
    -------
    >>> path = getfixture("tmp_path") / "config.json"
    >>> _ = path.write_text('{"decoder_name": "Vocos"}')
    >>> read_config(path).decoder_name
    'Vocos'
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than any configuration is")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found; a model folder holds config.json and "
            "model.safetensors"
        ) from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: no valid JSON: {error}") from None
    return CodecConfig.parse(data, path)
