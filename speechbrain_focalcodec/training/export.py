"""From the checkpoints of the stages to a model folder."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from speechbrain_focalcodec import checkpoint
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.config import CodecConfig, read_config
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.hyperparams import write_hyperparams
from speechbrain_focalcodec.training.checkpointing import AtomicCheckpointer
from speechbrain_focalcodec.wavlm_import import load_encoder

__all__ = ["export_runs", "load_run"]

# What a stage's output folder calls the folder of its checkpoints.
SAVE_FOLDER = "save"


def load_run(codec: FocalCodec, run: str | Path, parts: Iterable[str]) -> None:
    """Load parts of a codec from the best checkpoint of a training stage.

    Arguments
    ---------
    codec : FocalCodec
        Receives the weights.
    run : str or Path
        Output folder of the stage.
    parts : iterable of str
        Names of the codec's parts.

    Raises
    ------
    CheckpointError
        If the folder has no checkpoint that is whole, or the checkpoint has
        no such part or does not fit the codec.
    """
    folder = Path(run) / SAVE_FOLDER
    best = None
    if folder.is_dir():
        best = AtomicCheckpointer(folder).find_checkpoint(min_key="loss")
    if best is None:
        raise CheckpointError(
            f"{folder}: no checkpoint with a validation loss; give the output "
            "folder of a training that has finished an epoch (a --debug run "
            "keeps its own only with --debug_persistently)"
        )
    for part in parts:
        path = best.path / f"{part}.ckpt"
        if not path.is_file():
            raise CheckpointError(
                f"{path}: not found; did this stage train the {part}?"
            )
        weights = torch.load(path, map_location="cpu", weights_only=True)
        module: nn.Module = getattr(codec, part)
        checkpoint.load_state(module, weights, path)


def export_runs(
    out: str | Path,
    decoder_run: str | Path,
    quantizer_run: str | Path,
    encoder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> FocalCodec:
    """Join the stages' best checkpoints into a model folder.

    Arguments
    ---------
    out : str or Path
        The folder to write: `config.json`, `model.safetensors` and the
        `hyperparams.yaml` of SpeechBrain's `from_hparams`.
    decoder_run, quantizer_run : str or Path
        Output folders of the stages; they must have had the same model.
    encoder : str or Path, optional
        Where the encoder's weights come from, see
        :func:`~speechbrain_focalcodec.wavlm_import.load_encoder`; needed for
        WavLM.
    dtype : torch.dtype
        Precision of the stored weights; float16 halves the file.

    Returns
    -------
    FocalCodec
        The model, as it will be loaded.

    Raises
    ------
    CheckpointError
        If a run has no checkpoint, the runs differ in their models, or the
        encoder's weights are missing.
    """
    config = _common_config(Path(decoder_run), Path(quantizer_run))
    codec = FocalCodec(config, name=Path(out).name)
    if any(True for _ in codec.encoder.parameters()):
        if encoder is None:
            raise CheckpointError(
                "the encoder has weights of its own: give --encoder, where "
                "they come from (the source that the stages were trained on)"
            )
        load_encoder(codec, encoder)
    load_run(codec, decoder_run, ["decoder"])
    load_run(codec, quantizer_run, ["compressor", "decompressor"])
    codec.to(dtype).save_pretrained(out)
    write_hyperparams(out, codec)
    return FocalCodec.from_pretrained(out)


def _common_config(run: Path, other_run: Path) -> CodecConfig:
    """The configuration of two runs, which must be the same."""
    config = read_config(run / checkpoint.CONFIG_FILE)
    other = read_config(other_run / checkpoint.CONFIG_FILE)
    for key in CodecConfig.model_fields:
        if getattr(config, key) != getattr(other, key):
            raise CheckpointError(
                f"{run} and {other_run} were trained with different models: "
                f"{key} differs"
            )
    return config
