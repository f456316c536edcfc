"""Closed schema of a task's `config.json`.

Unknown keys are errors. The values select only parts of this package.
"""

import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from speechbrain_focalcodec.config import parse_model
from speechbrain_focalcodec.downstream.language_model import TokenLanguageModel
from speechbrain_focalcodec.downstream.networks import (
    BiLSTM,
    Conformer,
    PooledBiLSTM,
)
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.part_configs import (
    Count,
    Dropout,
    Heads,
    Layers,
    PartConfig,
    SampleRate,
    Size,
)

__all__ = [
    "ASRConfig",
    "ClassificationConfig",
    "TTSConfig",
    "TaskConfig",
    "options_of",
    "parse_task_config",
]

Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
# Limits the memory that a small file can request.
Pieces = Annotated[int, Field(ge=1, le=1 << 15)]


class BiLSTMConfig(PartConfig):
    """Options of `networks.BiLSTM`."""

    name: Literal["BiLSTM"] = "BiLSTM"
    hidden_dim: Size = 512
    num_layers: Layers = 2
    dropout: Dropout = 0.0


class PooledBiLSTMConfig(PartConfig):
    """Options of `networks.PooledBiLSTM`."""

    name: Literal["PooledBiLSTM"] = "PooledBiLSTM"
    hidden_dim: Size = 256
    num_layers: Annotated[int, Field(ge=0, le=256)] = 1
    dropout: Dropout = 0.0


class ConformerConfig(PartConfig):
    """Options of `networks.Conformer`."""

    name: Literal["Conformer"] = "Conformer"
    dim: Size = 256
    num_layers: Layers = 6
    num_heads: Heads = 4
    ffn_dim: Size = 1024
    kernel_size: Size = 31
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _consistent(self) -> "ConformerConfig":
        if self.dim % 2 or self.dim % self.num_heads:
            raise ValueError("dim must be even, and a multiple of num_heads")
        if self.kernel_size % 2 == 0:
            raise ValueError("kernel_size must be odd")
        return self


class LanguageModelConfig(PartConfig):
    """Options of `language_model.TokenLanguageModel`."""

    name: Literal["TokenLanguageModel"] = "TokenLanguageModel"
    dim: Size = 512
    num_layers: Layers = 12
    num_heads: Heads = 4
    num_kv_heads: Heads = 1
    ffn_dim: Size = 2048
    dropout: Dropout = 0.0
    token_dropout: Dropout = 0.0
    aligned: bool = False
    freeze: bool = False
    tied_to_codes: bool = False
    mixture: Size | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "LanguageModelConfig":
        if self.dim % (2 * self.num_heads):
            raise ValueError("dim must be a multiple of twice num_heads")
        if self.num_heads % self.num_kv_heads:
            raise ValueError("num_heads must be a multiple of num_kv_heads")
        return self


class SamplingConfig(PartConfig):
    """Options of `generation.Sampling`."""

    temperature: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_repeats: Size | None = None
    penalty: Positive = 1.0
    window: Size = 16
    min_tokens: Count = 1


class FrontEndConfig(PartConfig):
    """Input of a task: its front end and codec."""

    input: Literal["tokens", "features", "log_mel"] = "tokens"
    #: Name, hub repository or path of the codec.
    codec: Text | None = None
    #: Fingerprint of the codec.
    codec_fingerprint: Text | None = None
    sample_rate: SampleRate = 16000
    codebook_size: Annotated[int, Field(ge=2, le=1 << 24)] | None = None
    token_rate: Annotated[float, Field(ge=0.1, le=1e4)] | None = None
    dim: Size | None = None
    freeze: bool = False
    tied_to_codes: bool = False

    @field_validator("codebook_size")
    @classmethod
    def _power_of_two(cls, value: int | None) -> int | None:
        if value is not None and value & (value - 1):
            raise ValueError("must be a power of two")
        return value


class TaskConfig(PartConfig):
    """Keys that the configurations of all tasks have."""

    #: Classes of parts by name.
    PARTS: ClassVar[dict[str, type[nn.Module]]] = {
        "BiLSTM": BiLSTM,
        "Conformer": Conformer,
        "PooledBiLSTM": PooledBiLSTM,
        "TokenLanguageModel": TokenLanguageModel,
    }

    front_end: FrontEndConfig = FrontEndConfig()

    def to_dict(self) -> dict[str, Any]:
        """Content of `config.json`."""
        return self.model_dump(mode="json")


class ASRConfig(TaskConfig):
    """Configuration of a recogniser."""

    task: Literal["asr"] = "asr"
    network: BiLSTMConfig | ConformerConfig = Field(
        default=BiLSTMConfig(), discriminator="name"
    )
    num_pieces: Pieces
    beam_size: Annotated[int, Field(ge=1, le=256)] = 1

    @property
    def num_outputs(self) -> int:
        """The pieces and CTC's blank."""
        return self.num_pieces + 1


class ClassificationConfig(TaskConfig):
    """Configuration of a classifier."""

    task: Literal["classification"] = "classification"
    network: PooledBiLSTMConfig = PooledBiLSTMConfig()
    label: Text = "label"
    classes: list[Text] = Field(min_length=2, max_length=1 << 16)

    @property
    def num_outputs(self) -> int:
        """One per class."""
        return len(self.classes)


class TTSConfig(TaskConfig):
    """Configuration of a synthesiser."""

    task: Literal["tts"] = "tts"
    language_model: LanguageModelConfig = LanguageModelConfig()
    num_pieces: Pieces
    speaker_dim: Size | None = None
    sampling: SamplingConfig = SamplingConfig()
    max_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0

    @model_validator(mode="after")
    def _tokens_only(self) -> "TTSConfig":
        if self.front_end.input != "tokens":
            raise ValueError("front_end.input must be tokens for synthesis")
        return self


_TASKS: dict[str, type[TaskConfig]] = {
    "asr": ASRConfig,
    "classification": ClassificationConfig,
    "tts": TTSConfig,
}


def parse_task_config(
    data: Any, source: str | Path = "the configuration"
) -> TaskConfig:
    """Validate the configuration of a task, read from the file `source`.

    Raises a ConfigError if the task or a key is unknown, or a value is out of
    range.
    """
    if isinstance(data, TaskConfig):
        return data
    if isinstance(data, dict) and "encoder_name" in data:
        raise ConfigError(
            f"{source}: is a codec's, not a task's; load it with FocalCodec "
            "or PretrainedFocalCodec"
        )
    name = data.get("task") if isinstance(data, dict) else None
    kind = _TASKS.get(name) if isinstance(name, str) else None
    if isinstance(data, dict) and kind is None:
        raise ConfigError(f"{source}: task: must be one of {', '.join(_TASKS)}")
    return parse_model(kind or TaskConfig, data, source)


def options_of(made_by: Any) -> dict[str, Any]:
    """Name and options of a part that a YAML makes with ``!name:``.

    `made_by` is a class of `TaskConfig.PARTS` or a partial of it. Others raise
    a ConfigError: from_pretrained would have to execute code from the model.
    """
    options: dict[str, Any] = {}
    kind = made_by
    while isinstance(kind, functools.partial):
        options = {**kind.keywords, **options}
        kind = kind.func
    name = getattr(kind, "__name__", repr(kind))
    if TaskConfig.PARTS.get(name) is not kind:
        raise ConfigError(
            f"{name} is none of {', '.join(TaskConfig.PARTS)}: from_pretrained "
            "executes no code, so it cannot make it"
        )
    return {"name": name, **options}
