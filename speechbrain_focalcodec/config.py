"""The closed schema of a model's `config.json`.

A configuration names the five parts and gives the options of each. The names
are looked up in :mod:`speechbrain_focalcodec.parts`, and every option is known
there: what is not in the schema is an error that names it, so a downloaded
file can select nothing but these parts.

The two versions of the published package have different defaults. What a
configuration leaves out gets those of the version that wrote it, before the
schema sees it: by :func:`fill_defaults`, and nowhere else.
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
    "left_out",
    "parse_model",
    "read_config",
    "read_json",
    "version_of",
]

M = TypeVar("M", bound=BaseModel)

MAX_CONFIG_BYTES = 1 << 20
# Keys that say where a configuration comes from, and select nothing.
METADATA = {"model_id", "version"}
# What inference takes beside the weights. The releases have 50 frames and up
# to 1.64 M values (in the encoder's convolutions) a second, and streams of
# theirs keep 6.3 M values.
MAX_FRAME_RATE = 1000
MAX_VALUES = 1 << 22
MAX_KEPT = 1 << 27


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

    # The options are of the class that the name selects in parts.PARTS.
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
        """Look a part up; validate its options by the class of its entry."""
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
        if name is None:  # the name was refused: one error is enough
            return next(iter(PARTS[role].values())).config()
        if name not in PARTS[role]:
            return OwnPartConfig.model_validate(value)
        return PARTS[role][name].config.model_validate(value)

    @property
    def own_parts(self) -> list[str]:
        """Roles of the parts that are the user's own."""
        return [role for role in ROLES if self.name(role) not in PARTS[role]]

    def name(self, role: str) -> str:
        """The name of a part."""
        return getattr(self, f"{role}_name")

    def part(self, role: str) -> Any:
        """The options of a part."""
        return getattr(self, f"{role}_config")

    @model_validator(mode="after")
    def _fits_together(self) -> "CodecConfig":
        if not self.own_parts:
            check_fit({role: self.part(role) for role in ROLES}, "_config")
        return self

    @model_validator(mode="after")
    def _affordable(self) -> "CodecConfig":
        """A small file must not make a model that takes all memory or time."""
        if self.own_parts:
            return self
        encoder, decoder = self.encoder_config, self.decoder_config
        values = []  # a second
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
            # Scores of all layers and heads: 960 k so in the largest WavLM.
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
                f"in a layer a second, more than {MAX_FRAME_RATE} and "
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
            Where it comes from, for the message.
        version : str, optional
            Version of the published package whose defaults it leaves out,
            ``0.0.1`` or ``0.0.2``; by default see :func:`fill_defaults`.
        own_parts : bool
            Whether a name may be the import path of a class of the user's
            own: for folders that are trusted alone, since building the codec
            runs its code.

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
        if not isinstance(data, cls):
            data = fill_defaults(data, version)
        return parse_model(cls, data, source, {"own_parts": own_parts})

    def identity(self) -> dict[str, Any]:
        """What a model's fingerprint holds of its configuration.

        Defaults are left out, so that an option added later leaves the
        fingerprints of earlier models as they are.

        Returns
        -------
        dict
            JSON-able.
        """
        data = self.model_dump(
            mode="json",
            exclude_defaults=True,
            exclude={"encoder_config": {"use_flex_attention"}},
        )
        if self.decoder_name == "WaveNeXt":
            # Its default was once to be causal.
            causal = data["decoder_config"].pop("causal", False)
            if not causal:
                data["decoder_config"]["causal"] = False
        return data

    def to_dict(self) -> dict[str, Any]:
        """The configuration as `config.json` holds it.

        Options that were not given are left out, so a file that was read is
        written back with the same keys; but not those whose default depends
        on a version, so it means the same to every reader.

        Returns
        -------
        dict
            JSON-able.
        """
        data: dict[str, Any] = {}
        for role in ROLES:
            data[f"{role}_name"] = self.name(role)
            data[f"{role}_config"] = self.part(role).model_dump(
                mode="json", exclude_unset=True
            )
        return data


def check_fit(parts: Mapping[str, Any], suffix: str = "") -> None:
    """Raise unless the five parts fit each other.

    Arguments
    ---------
    parts : dict
        Part or configuration of a part, by role.
    suffix : str
        What follows the role in messages.

    Raises
    ------
    ValueError
        If dimensions, factors or sample rates differ.
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
    """Which version of the published package wrote a configuration.

    Arguments
    ---------
    data : dict
        Content of `config.json`; need not be valid.

    Returns
    -------
    str or None
        ``0.0.1`` or ``0.0.2``; None where its keys do not tell.

    Example
    -------
    >>> version_of({"decoder_config": {"input_channels": 1024}})
    '0.0.1'
    >>> version_of({"encoder_config": {"causal": False}})
    '0.0.2'
    """
    if data.get("version") in VERSIONS:
        return data["version"]
    if data.get("encoder_name") == "LogMel":
        # This package's own; it took the defaults of v0.0.1.
        return VERSIONS[0]
    parts = {role: _options(data, role) for role in ROLES}
    # v0.0.2 also reads what only v0.0.1 writes.
    if (
        any(NEW_OPTIONS & part.keys() for part in parts.values())
        or "input_dim" in parts["decoder"]
        or data.get("decoder_name") == "WaveNeXt"
    ):
        return VERSIONS[1]
    return VERSIONS[0] if OLD_OPTIONS & parts["decoder"].keys() else None


def left_out(data: dict[str, Any]) -> list[str]:
    """Options that are not written and whose default depends on the version.

    Arguments
    ---------
    data : dict
        Content of `config.json`; need not be valid.

    Returns
    -------
    list of str
        Their paths.

    Example
    -------
    >>> left_out({"decoder_name": "Vocos"})[-1]
    'decompressor_config.focal_factor'
    """
    names = [] if "decoder_name" in data else ["decoder_name"]
    return names + [
        f"{role}_config.{key}"
        for role, defaults in DEFAULTS.items()
        for key in defaults
        if key not in _options(data, role)
    ]


def fill_defaults(data: Any, version: str | None = None) -> Any:
    """Write out the options whose default depends on the version.

    Arguments
    ---------
    data : dict
        Content of `config.json`; need not be valid.
    version : str, optional
        ``0.0.1`` or ``0.0.2``. By default :func:`version_of`, and where that
        does not tell, 0.0.1; a WaveNeXt is then causal where all other parts
        are, as it always was in this package's own configurations.

    Returns
    -------
    dict
        A copy without :data:`METADATA`; what is no dict as it is.

    Example
    -------
    >>> filled = fill_defaults({}, "0.0.2")
    >>> filled["decoder_name"], filled["quantizer_config"]
    ('WaveNeXt', {'codebook_size': 4096})
    """
    if not isinstance(data, dict):
        return data
    column = VERSIONS.index(version or version_of(data) or VERSIONS[0])
    data = {key: data[key] for key in data if key not in METADATA}
    data.setdefault("decoder_name", DECODERS[column])
    for role, defaults in DEFAULTS.items():
        filled = {key: values[column] for key, values in defaults.items()}
        _fill(data, role, filled)
    if data["decoder_name"] == "WaveNeXt":
        causal = version is None and all_causal(data)
        _fill(data, "decoder", {"causal": causal})
    return data


def as_saved_before(data: Any) -> Any:
    """Write out what earlier versions of this package left out on saving.

    A WaveNeXt was causal by default; the rest was as in v0.0.1.

    Arguments
    ---------
    data : dict
        Content of a `config.json` that this package wrote.

    Returns
    -------
    dict
        A copy, for :meth:`CodecConfig.parse` with version 0.0.1.

    Example
    -------
    >>> as_saved_before({"decoder_name": "WaveNeXt"})["decoder_config"]
    {'causal': True}
    """
    if isinstance(data, dict) and data.get("decoder_name") == "WaveNeXt":
        data = dict(data)
        _fill(data, "decoder", {"causal": True})
    return data


def all_causal(data: dict[str, Any]) -> bool:
    """Whether every part before the decoder is causal.

    Arguments
    ---------
    data : dict
        Content of `config.json`; need not be valid.

    Returns
    -------
    bool
        Whether they are.

    Example
    -------
    >>> all_causal({"encoder_config": {"causal": True}})
    False
    """
    return all(
        _options(data, role).get("causal") is True
        for role in ("encoder", "compressor", "decompressor")
    )


def _options(data: dict[str, Any], role: str) -> dict[str, Any]:
    """The options of a part that are written, whatever stands there."""
    part = data.get(f"{role}_config")
    return part if isinstance(part, dict) else {}


def _fill(data: dict[str, Any], role: str, defaults: dict[str, Any]) -> None:
    """Give a part defaults; what is no dict is left for the schema."""
    part = data.setdefault(f"{role}_config", {})
    if isinstance(part, dict):
        data[f"{role}_config"] = {**defaults, **part}


def parse_model(
    cls: type[M],
    data: Any,
    source: str | Path,
    context: dict[str, Any] | None = None,
) -> M:
    """Validate untrusted data by a closed schema.

    Arguments
    ---------
    cls : type
        The schema.
    data : dict
        What JSON has given; an instance of the schema is returned as it is.
    source : str or Path
        Where it comes from, for the message.
    context : dict, optional
        What the schema's validators are told.

    Returns
    -------
    BaseModel
        Of the schema.

    Raises
    ------
    ConfigError
        If it does not fit; the message names the keys.
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
    """One problem of a configuration, with the path of its key."""
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
    """A value of an untrusted file, short and without control characters."""
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
        If the file is missing, no JSON, or does not fit the schema; or if it
        leaves out options whose default depends on the version that wrote it,
        and does not tell which that is.

    Example
    -------
    >>> path = getfixture("tmp_path") / "config.json"
    >>> _ = path.write_text('{"decoder_config": {"input_dim": 1024}}')
    >>> read_config(path).decoder_name
    'WaveNeXt'
    """
    data = read_json(path)
    config = CodecConfig.parse(data, path)
    missing = left_out(data)
    if missing and version_of(data) is None:
        raise ConfigError(
            f"{path}: does not tell which version of the published package "
            f"wrote it; write down {abridge(missing, most=12)}"
        )
    return config


def read_json(path: str | Path) -> Any:
    """Read a `config.json` of any kind of model, without trusting it.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    dict, list or a plain value
        Its content.

    Raises
    ------
    ConfigError
        If the file is missing, too large or no JSON, or repeats a key.

    Example
    -------
    >>> path = getfixture("tmp_path") / "config.json"
    >>> _ = path.write_text('{"a": 1, "a": 2}')
    >>> read_json(path)
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.ConfigError: ...config.json: no valid JSON: \
repeated key a
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
    """A JSON object; of a repeated key readers disagree which one counts."""
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"repeated key {_printable(key)}")
        data[key] = value
    return data
