"""The closed schema of a model's `config.json`.

A configuration names the five parts and their options. Names are looked up in
:mod:`speechbrain_focalcodec.parts`; unknown names and options are errors that
name the key. So a downloaded file can select only these parts.

The two versions of the published package have different defaults.
:func:`fill_defaults` completes a configuration with the defaults of the version
that wrote it, before it is validated.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from speechbrain_focalcodec.audio.files import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from speechbrain_focalcodec.errors import ConfigError, abridge
from speechbrain_focalcodec.modules.part_configs import (
    DECODERS,
    DEFAULTS,
    NEW_OPTIONS,
    OLD_OPTIONS,
    VERSIONS,
    LogMelConfig,
    OwnPartConfig,
)
from speechbrain_focalcodec.parts import PARTS, ROLES
from speechbrain_focalcodec.utils.files import read_file

__all__ = [
    "CodecConfig",
    "check_fit",
    "fill_defaults",
    "missing_options",
    "parse_model",
    "read_config",
    "read_json",
    "version_of",
]

M = TypeVar("M", bound=BaseModel)

MAX_CONFIG_BYTES = 1 << 20
# Keys that say where a configuration comes from; otherwise ignored.
ORIGIN_KEYS = {"model_id", "version"}
# Bounds on the cost of inference. The releases have 50 frames and up to 1.64 M
# values (in the encoder's convolutions) per second; their streams keep 6.3 M
# values.
MAX_FRAME_RATE = 1000
MAX_VALUES = 1 << 22
MAX_KEPT = 1 << 27


class CodecConfig(BaseModel):
    """Configuration of a codec, in the layout of `config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The class of the options is parts.PARTS[role][name].config.
    encoder_name: str = "WavLM"
    encoder_config: Any = Field({}, validate_default=True)
    compressor_name: str = "FocalEncoder"
    compressor_config: Any = Field({}, validate_default=True)
    quantizer_name: str = "BinarySphericalQuantizer"
    quantizer_config: Any = Field({}, validate_default=True)
    decompressor_name: str = "FocalDecoder"
    decompressor_config: Any = Field({}, validate_default=True)
    decoder_name: str = "Vocos"
    decoder_config: Any = Field({}, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        """Look up a part's name; validate its options by its config class."""
        role, _, key = (info.field_name or "").rpartition("_")
        own_parts = bool(info.context and info.context.get("own_parts"))
        if key == "name":
            if isinstance(value, str) and (
                value in PARTS[role] or (own_parts and "." in value)
            ):
                return value
            advice = ""
            if isinstance(value, str) and "." in value:
                advice = (
                    "; a model with parts of its own is loaded by "
                    "PretrainedFocalCodec.from_hparams, which runs its code"
                )
            known = " or ".join(map(repr, PARTS[role]))
            raise ValueError(
                f"unknown module {_printable(value)}; known: {known}{advice}"
            )
        name = info.data.get(f"{role}_name")
        if name is None:  # the name was refused already
            return next(iter(PARTS[role].values())).config()
        if name not in PARTS[role]:
            return OwnPartConfig.model_validate(value)
        return PARTS[role][name].config.model_validate(value)

    @property
    def own_parts(self) -> list[str]:
        """Roles of parts that are not in :data:`PARTS`."""
        return [role for role in ROLES if self.name(role) not in PARTS[role]]

    def name(self, role: str) -> str:
        """Name of the part of a role."""
        return getattr(self, f"{role}_name")

    def part(self, role: str) -> Any:
        """Options of the part of a role."""
        return getattr(self, f"{role}_config")

    @model_validator(mode="after")
    def _fits_together(self) -> "CodecConfig":
        if not self.own_parts:
            check_fit({role: self.part(role) for role in ROLES}, "_config")
        return self

    @model_validator(mode="after")
    def _affordable(self) -> "CodecConfig":
        """Raise if a small file asks for too much memory or time."""
        if self.own_parts:
            return self
        encoder, decoder = self.encoder_config, self.decoder_config
        values = []  # per second
        if isinstance(encoder, LogMelConfig):
            rate = encoder.sample_rate / encoder.hop_length
            values.append(rate * encoder.n_fft)
        else:
            rate = 16000.0
            for dim, stride in zip(
                encoder.hidden_dims, encoder.strides, strict=True
            ):
                rate /= stride
                values.append(rate * dim)
            values.append(rate * max(3 * encoder.dim, encoder.ffn_dim))
            # Attention scores of all layers and heads: 960 k in WavLM-large.
            scores = rate**2 * encoder.num_layers * encoder.num_heads
            values.append(4 * scores)
            kept = 2 * encoder.num_layers * encoder.window_size * encoder.dim
            if encoder.causal and kept > MAX_KEPT:
                raise ValueError(
                    f"encoder_config: a stream keeps {kept} values, more than "
                    f"{MAX_KEPT}; choose a smaller window_size"
                )
        dims = (
            *(4 * dim for dim in self.compressor_config.hidden_dims),
            *(4 * dim for dim in self.decompressor_config.hidden_dims),
            *(decoder.dim, decoder.ffn_dim, getattr(decoder, "n_fft", 0)),
        )
        values.append(rate * max(dims))
        if rate > MAX_FRAME_RATE or max(values) > MAX_VALUES:
            raise ValueError(
                f"the model has {rate:g} frames and {max(values):.3g} values "
                f"in a layer per second, more than {MAX_FRAME_RATE} and "
                f"{MAX_VALUES:.3g}; choose longer hops or fewer channels"
            )
        return self

    @classmethod
    def parse(
        cls,
        data: Any,
        source: str | Path = "the configuration",
        version: str | None = None,
        own_parts: bool = False,
    ) -> "CodecConfig":
        """Validate a configuration.

        Arguments
        ---------
        data : dict or CodecConfig
            Content of `config.json`.
        source : str or Path
            Its origin, for messages.
        version : str, optional
            Version of the published package that gives the defaults,
            ``0.0.1`` or ``0.0.2``; by default see :func:`fill_defaults`.
        own_parts : bool
            Whether names may be import paths of other classes. Only for trusted
            folders: building the codec runs their code.

        Returns
        -------
        CodecConfig
            The configuration.

        Raises
        ------
        ConfigError
            If a key is unknown, a value is out of range or parts do not fit;
            the message names the key.
        """
        if not isinstance(data, cls):
            data = fill_defaults(data, version)
        return parse_model(cls, data, source, {"own_parts": own_parts})

    def identity(self) -> dict[str, Any]:
        """Content of the configuration for the model's fingerprint.

        Defaults are left out, so options that are added later do not change the
        fingerprints of earlier models.
        """
        data = self.model_dump(
            mode="json",
            exclude_defaults=True,
            exclude={"encoder_config": {"use_flex_attention"}},
        )
        if self.decoder_name == "WaveNeXt":
            # Earlier versions were causal by default.
            causal = data["decoder_config"].pop("causal", False)
            if not causal:
                data["decoder_config"]["causal"] = False
        return data

    def to_dict(self) -> dict[str, Any]:
        """Content of `config.json`.

        Options that were not set are left out, except those whose default
        depends on a version. So a file is written with the keys that it was
        read with.
        """
        data: dict[str, Any] = {}
        for role in ROLES:
            data[f"{role}_name"] = self.name(role)
            data[f"{role}_config"] = self.part(role).model_dump(
                mode="json", exclude_unset=True
            )
        return data


def check_fit(parts: Mapping[str, Any], suffix: str = "") -> None:
    """Raise ValueError if dimensions, factors or sample rates do not match.

    `parts` has each role's part or configuration; `suffix` follows the role in
    messages.
    """
    encoder, compressor, quantizer, decompressor, decoder = (
        parts[role] for role in ROLES
    )
    bits = quantizer.codebook_size.bit_length() - 1
    channels = ("the encoder's features", encoder.output_dim)
    codes = (f"the bits of quantizer{suffix}.codebook_size", bits)
    for name, got, (source, needed) in (
        (f"compressor{suffix}.input_dim", compressor.input_dim, channels),
        (f"compressor{suffix}.output_dim", compressor.output_dim, codes),
        (f"decompressor{suffix}.input_dim", decompressor.input_dim, codes),
        (f"decompressor{suffix}.output_dim", decompressor.output_dim, channels),
        (f"decoder{suffix}.input_dim", decoder.input_dim, channels),
    ):
        if got != needed:
            raise ValueError(f"{name} is {got}, but {source} have {needed}")
    down = math.prod(compressor.downscale_factors)
    up = math.prod(decompressor.upscale_factors)
    if down != up:
        raise ValueError(
            f"the products of compressor{suffix}.downscale_factors and "
            f"decompressor{suffix}.upscale_factors differ: {down}, {up}"
        )
    rate = encoder.sample_rate * decoder.hop_length // encoder.hop_length
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise ValueError(
            f"decoder{suffix}.hop_length is {decoder.hop_length} and the "
            f"encoder's {encoder.hop_length}: the output would have {rate} Hz"
        )


def version_of(data: dict[str, Any]) -> str | None:
    """Version of the published package that wrote a configuration.

    Returns ``0.0.1``, ``0.0.2``, or None if the keys do not show it. `data`
    need not be valid.
    """
    if data.get("version") in VERSIONS:
        return data["version"]
    if data.get("encoder_name") == "LogMel":
        # This package's own; it took the defaults of v0.0.1.
        return VERSIONS[0]
    parts = {role: _options(data, role) for role in ROLES}
    # v0.0.2 also reads the options of v0.0.1.
    if (
        any(NEW_OPTIONS & part.keys() for part in parts.values())
        or "input_dim" in parts["decoder"]
        or data.get("decoder_name") == "WaveNeXt"
    ):
        return VERSIONS[1]
    return VERSIONS[0] if OLD_OPTIONS & parts["decoder"].keys() else None


def missing_options(data: dict[str, Any]) -> list[str]:
    """Paths of missing options whose default depends on the version."""
    names = [] if "decoder_name" in data else ["decoder_name"]
    return names + [
        f"{role}_config.{key}"
        for role, defaults in DEFAULTS.items()
        for key in defaults
        if key not in _options(data, role)
    ]


def fill_defaults(data: Any, version: str | None = None) -> Any:
    """Add the missing options whose default depends on the version.

    The version is `version`, else :func:`version_of`, else 0.0.1. Without
    `version`, a WaveNeXt is causal if all other parts are, as in configurations
    of this package. Returns a copy without :data:`ORIGIN_KEYS`; a value that is
    no dict is returned as it is.
    """
    if not isinstance(data, dict):
        return data
    column = VERSIONS.index(version or version_of(data) or VERSIONS[0])
    data = {key: data[key] for key in data if key not in ORIGIN_KEYS}
    data.setdefault("decoder_name", DECODERS[column])
    for role, defaults in DEFAULTS.items():
        filled = {key: values[column] for key, values in defaults.items()}
        _fill(data, role, filled)
    if data["decoder_name"] == "WaveNeXt":
        causal = version is None and all_causal(data)
        _fill(data, "decoder", {"causal": causal})
    return data


def as_saved_before(data: Any) -> Any:
    """Add the options that earlier versions of this package did not save.

    A WaveNeXt was causal by default. The result is for
    :meth:`CodecConfig.parse` with version 0.0.1.
    """
    if isinstance(data, dict) and data.get("decoder_name") == "WaveNeXt":
        data = dict(data)
        _fill(data, "decoder", {"causal": True})
    return data


def all_causal(data: dict[str, Any]) -> bool:
    """Whether encoder, compressor and decompressor are marked as causal."""
    return all(
        _options(data, role).get("causal") is True
        for role in ("encoder", "compressor", "decompressor")
    )


def _options(data: dict[str, Any], role: str) -> dict[str, Any]:
    """The options of a part as written; {} if they are no table."""
    part = data.get(f"{role}_config")
    return part if isinstance(part, dict) else {}


def _fill(data: dict[str, Any], role: str, defaults: dict[str, Any]) -> None:
    """Add defaults to a part's options, if these are a table."""
    part = data.setdefault(f"{role}_config", {})
    if isinstance(part, dict):
        data[f"{role}_config"] = {**defaults, **part}


def parse_model(
    cls: type[M],
    data: Any,
    source: str | Path,
    context: dict[str, Any] | None = None,
) -> M:
    """Validate untrusted JSON with a pydantic model.

    `source` is named in messages; `context` goes to the validators. Raises
    ConfigError that names the keys.
    """
    if isinstance(data, cls):
        return data
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source}: expected a JSON object, got {type(data).__name__}"
        )
    try:
        return cls.model_validate(data, context=context)
    except ValidationError as error:
        problems = list(map(_describe, error.errors()))
        raise ConfigError(f"{source}: {abridge(problems, '; ')}") from None


def _describe(error: Any) -> str:
    """Message for one validation error, with the path of its key."""
    path = ".".join(map(_printable, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    if error["type"] == "literal_error":
        expected = error["ctx"]["expected"]
        name = _printable(error["input"])
        return f"{path}: unknown module {name}; known: {expected}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _printable(value: Any) -> str:
    """An untrusted value, shortened and without control characters."""
    text = value if isinstance(value, str) else repr(value)
    return reprlib.repr(text) if not text.isprintable() else text[:80]


def read_config(path: str | Path) -> CodecConfig:
    """Read and validate a `config.json` without its weights.

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
        If the file is missing, no JSON or does not fit the schema; or if it
        leaves out options whose default depends on the version that wrote it,
        and does not show that version.
    """
    data = read_json(path)
    config = CodecConfig.parse(data, path)
    missing = missing_options(data)
    if missing and version_of(data) is None:
        raise ConfigError(
            f"{path}: does not tell which version of the published package "
            f"wrote it; write down {abridge(missing, most=12)}"
        )
    return config


def read_json(path: str | Path) -> Any:
    """Read untrusted JSON of at most 1 MiB.

    Raises ConfigError if the file is missing, too large or no JSON, or if an
    object has a repeated key.
    """
    path = Path(path)
    try:
        content = read_file(path, MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found; a model folder holds config.json and "
            "model.safetensors"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_without_repeats
        )
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    # Not only JSONDecodeError: Python refuses integers of 4300 digits.
    except ValueError as error:
        raise ConfigError(f"{path}: no valid JSON: {error}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; readers disagree about which repeated key counts."""
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"repeated key {_printable(key)}")
        data[key] = value
    return data
