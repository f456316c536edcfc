"""Loads the weights of a stage and freezes the other parts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.training.sources import PARTS, Source, load_parts
from speechbrain_focalcodec.training.teacher import (
    full_context_codec,
    is_student,
    load_frozen_encoder,
)

__all__ = [
    "StageParts",
    "lacks_encoder",
    "load_weights",
    "names_of",
    "unfreeze",
]

# Parts that need no earlier stage. A stage that trains parts of several of
# these sets continues earlier stages.
STAGES = (
    {"encoder", "positional_embedding"},
    {"compressor", "decompressor"},
    {"decoder"},
)
# A streaming encoder keeps these from its teacher and from the position stage.
POSITIONS = (
    "encoder.encoder.positional_embedding",
    "encoder.encoder.relative_embedding",
)


@dataclass(frozen=True)
class StageParts:
    """Trained parts of a stage, and how it uses the others.

    `teacher` tells whether an objective needs the full-context encoder,
    `quantizes` whether features go through the quantizer, `decodes` whether
    the stage decodes to waveforms.
    """

    trains: list[str]
    teacher: bool
    quantizes: bool
    decodes: bool


def load_weights(
    codec: FocalCodec,
    parts: StageParts,
    sources: Sequence[Source],
    encoder_source: str | None,
) -> tuple[dict[str, Source], FocalCodec | None]:
    """Load all weights of a stage.

    Returns the source of each loaded part, and the teacher if there is one.
    """
    learns_from_teacher = parts.teacher or (
        "encoder" in parts.trains and parts.quantizes
    )
    teacher = None
    if is_student(codec):
        if learns_from_teacher or (parts.decodes and not parts.quantizes):
            teacher = full_context_codec(codec, encoder_source)
            if not parts.quantizes:
                weights = teacher.encoder.state_dict()
                codec.encoder.load_state_dict(weights)
    elif learns_from_teacher:
        raise ConfigError(
            f"{codec.name}: the stage trains a causal WavLM, and this encoder "
            "is none: use a streaming model, such as "
            "hparams/model/focalcodec_50hz_4k_causal.yaml"
        )
    elif lacks_encoder(codec, parts.trains, sources):
        load_frozen_encoder(codec, encoder_source)
    required = _required(parts, sources, is_student(codec))
    return load_parts(codec, sources, required), teacher


def lacks_encoder(
    codec: FocalCodec, trains: Iterable[str], sources: Iterable[Source]
) -> bool:
    """Whether neither the stage nor a source has the encoder's weights."""
    has_weights = next(codec.encoder.parameters(), None) is not None
    if "encoder" in trains or not has_weights:
        return False
    return not any(source.has("encoder") for source in sources)


def _required(
    parts: StageParts, sources: Sequence[Source], student: bool
) -> list[str]:
    """Parts that ``start_from`` must have, in the codec's order."""
    used = {"decoder"} if parts.decodes else set()
    if parts.quantizes:
        used |= {"compressor", "decompressor"}
        if student:
            used.add("encoder")
    if sum(not stage.isdisjoint(parts.trains) for stage in STAGES) == 1:
        used -= set(parts.trains)
    position = parts.teacher and parts.trains == ["encoder"]
    if position and not any(x.has("encoder") for x in sources):
        used.add("positional_embedding")
    return [part for part in PARTS if part in used]


def unfreeze(
    codec: FocalCodec,
    trains: Iterable[str],
    frozen: str | Iterable[str] | None,
) -> dict[str, torch.nn.Module]:
    """Freeze a codec except for the trained parts, returned by name."""
    codec.requires_grad_(False)
    parts = {name: codec.get_submodule(PARTS[name]) for name in trains}
    for part in parts.values():
        part.requires_grad_(True)
    if "encoder" in parts and is_student(codec):
        _freeze(codec, POSITIONS)
    _freeze(codec, names_of(frozen))
    weights = (x for part in parts.values() for x in part.parameters())
    if not any(weight.requires_grad for weight in weights):
        raise ConfigError(
            f"freeze: {frozen} leaves the stage nothing to train; it "
            f"trains {', '.join(parts)}"
        )
    return parts


def _freeze(codec: FocalCodec, names: Iterable[str]) -> None:
    """Freeze modules or weights by their names."""
    for name in names:
        found = [
            weight
            for key, weight in codec.named_parameters()
            if f"{key}.".startswith(f"{name}.")
        ]
        if not found:
            raise ConfigError(
                f"freeze: the codec has no {name!r}; names are those of its "
                "state dict, such as compressor or decompressor.layers.0"
            )
        for weight in found:
            weight.requires_grad_(False)


def names_of(names: str | Iterable[str] | None) -> list[str]:
    """List of names from a list, one name or None."""
    return [names] if isinstance(names, str) else list(names or ())
