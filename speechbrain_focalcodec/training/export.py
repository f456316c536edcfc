"""Export of trained stages to a model folder."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from speechbrain_focalcodec.checkpoint import Weights, load_state
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.config import CodecConfig
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.hyperparams import write_hyperparams
from speechbrain_focalcodec.training.sources import (
    DISCRIMINATOR,
    DISCRIMINATOR_FILE,
    Source,
    check_fit,
    find_sources,
    load_parts,
)
from speechbrain_focalcodec.training.teacher import load_frozen_encoder
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["export_runs"]


def export_runs(
    out: str | Path,
    runs: str | Path | Iterable[str | Path],
    encoder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    discriminator: bool = False,
    decoder_share: float | None = None,
) -> FocalCodec:
    """Join the best checkpoints of stages into a model folder.

    Arguments
    ---------
    out : str or Path
        Folder for `config.json`, `model.safetensors` and the
        `hyperparams.yaml` of SpeechBrain's `from_hparams`.
    runs : str, Path or iterable of these
        Output folders of stages, and models. If several have the same part,
        the last is used. Compressor, decompressor and decoder are required.
    encoder : str or Path, optional
        Source of the encoder's weights if no run has them, see
        `wavlm_import.load_encoder`; required for an offline WavLM.
    dtype : torch.dtype
        Precision of the stored weights; float16 halves the file.
    discriminator : bool
        Also write the decoder's discriminator to `discriminator.safetensors`,
        so that training can continue from the model.
    decoder_share : float, optional
        Average the last two decoders with this weight for the last one. It must
        have been trained from the one before (Wortsman et al., 2022, Robust
        fine-tuning of zero-shot models).

    Returns
    -------
    FocalCodec
        The exported model.

    Raises
    ------
    CheckpointError, ConfigError
        If a run has no checkpoint, a part is missing, or parts do not fit each
        other.
    ValueError
        If the share is not within 0 and 1.
    """
    if decoder_share is not None and not 0 <= decoder_share <= 1:
        raise ValueError(
            f"decoder_share must be within 0 and 1, not {decoder_share}"
        )
    sources = find_sources(runs)
    config = _joint_config(sources, encoder)
    codec = FocalCodec.from_config(config, Path(out).name)
    has_encoder = any(source.has("encoder") for source in sources)
    if not has_encoder and next(codec.encoder.parameters(), None) is not None:
        if encoder is None:
            raise CheckpointError(
                "the encoder has weights of its own: give --encoder, where "
                "they come from (the source that the stages were trained on), "
                "or the run of the stage that trained it"
            )
        load_frozen_encoder(codec, encoder)
    required = ["compressor", "decompressor", "decoder"]
    load_parts(codec, sources, required)
    if decoder_share is not None:
        _average_decoders(codec, sources, decoder_share)
    extra = _discriminator(sources) if discriminator else None
    codec.to(dtype).save_pretrained(out)
    write_hyperparams(out, codec)
    path = Path(out) / DISCRIMINATOR_FILE
    path.unlink(missing_ok=True)
    if extra is not None:
        with atomic_path(path) as temporary:
            save_file(extra, temporary)
    if codec.config.own_parts:
        return codec.float().eval()
    return FocalCodec.from_pretrained(out)


def _joint_config(
    sources: Sequence[Source], encoder: str | Path | None
) -> CodecConfig:
    """Configuration of the joined parts."""
    owners: dict[str, Source] = {}
    for source in sources:
        owners |= dict.fromkeys(source.parts, source)
    missing = [
        part
        for part in ("compressor", "decompressor", "decoder")
        if part not in owners
    ]
    if missing:
        names = ", ".join(source.name for source in sources) or "no run"
        raise CheckpointError(
            f"{names}: no trained {' and no '.join(missing)}; add the output "
            "folder of the stage that trains it, or a model"
        )
    # A causal model's decoder stage was trained on the full-context teacher, so
    # its encoder is not the compressor's.
    owners.setdefault("encoder", owners["compressor"])
    owners["quantizer"] = owners["compressor"]
    config = {}
    for role in (
        "encoder",
        "compressor",
        "quantizer",
        "decompressor",
        "decoder",
    ):
        options = owners[role].config
        if f"{role}_config" not in options:
            options = _options_elsewhere(role, owners[role], sources, encoder)
        for key in (f"{role}_name", f"{role}_config"):
            config[key] = options[key]
    return CodecConfig.parse(config, own_parts=True)


def _options_elsewhere(
    role: str,
    owner: Source,
    sources: Sequence[Source],
    encoder: str | Path | None,
) -> Mapping[str, Any]:
    """Options of a part whose own source, a published recipe, has none."""
    configs = [source.config for source in sources]
    # A WavLM in the layout of transformers has no other parts.
    with suppress(ConfigError):
        configs += [x.config for x in find_sources(encoder or ())]
    for config in configs:
        if f"{role}_config" in config:
            return config
    raise CheckpointError(
        f"{owner.name}: has no hyperparams.yaml with the options of its "
        f"{role}; copy it there from the training's output folder, or give a "
        "model with the same options in front of the runs"
    )


def _average_decoders(
    codec: FocalCodec, sources: Sequence[Source], share: float
) -> None:
    """Average the codec's decoder with the one before it."""
    found = [source for source in sources if source.has("decoder")]
    if len(found) < 2:
        raise CheckpointError(
            f"{found[0].name}: an average takes two decoders: give the run "
            "or model before it too, in front of it"
        )
    before = found[-2]
    check_fit(before, codec.config, "decoder")
    last = {k: v.clone() for k, v in codec.decoder.state_dict().items()}
    load_state(codec.decoder, before.weights("decoder"), before.name)
    codec.decoder.load_state_dict(
        {
            name: torch.lerp(value, last[name], share)
            if value.is_floating_point()
            else last[name]
            for name, value in codec.decoder.state_dict().items()
        }
    )


def _discriminator(sources: Sequence[Source]) -> Weights:
    """Weights of the last discriminator."""
    found = [source for source in sources if source.has(DISCRIMINATOR)]
    if not found:
        raise CheckpointError(
            "no run has a discriminator: leave --discriminator out, or give "
            "the run of a decoder stage that was trained with one"
        )
    weights = found[-1].weights(DISCRIMINATOR)
    return {name: value.contiguous() for name, value in weights.items()}
