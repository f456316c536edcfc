"""Text at the end of a run: the next commands."""

from typing import Any

from speechbrain_focalcodec.training.loading import lacks_encoder
from speechbrain_focalcodec.training.teacher import is_student

__all__ = ["missing_parts", "next_steps"]


def missing_parts(brain: Any) -> list[str]:
    """Parts for resynthesis that neither stage nor ``start_from`` has."""
    needed = ["compressor", "decompressor", "decoder"]
    # An encoder with full context has been loaded already.
    if is_student(brain.codec):
        needed.insert(0, "encoder")
    return [
        part
        for part in needed
        if part not in brain.trains and part not in brain.loaded
    ]


def next_steps(brain: Any) -> list[str]:
    """Lines with the output folder and the next commands of a stage."""
    folder = str(brain.hparams.output_folder)
    if brain.debug and not brain.debug_persistently:
        return [f"{folder}: a --debug run keeps no weights"]
    lines = [f"{folder} has the trained {', '.join(brain.trains)}. Next:"]
    if brain.trains == ["encoder"] and not is_student(brain.codec):
        return [
            *lines,
            "  train the other stages with it: python recipes/CORPUS/"
            f"train.py hparams/train/STAGE.yaml --encoder_source={folder}",
        ]
    runs = [*(source.name for source in brain.sources), folder]
    missing = missing_parts(brain)
    if missing:
        lines.append(
            f"  a model needs a trained {', '.join(missing)} too: train its "
            "stages (docs/training.md), those that continue this one with "
            f"--start_from=[{','.join(runs)}]; then"
        )
        runs.insert(0, "RUN_OF_THE_OTHER_STAGE")
    command = f"focalcodec export my_model {' '.join(runs)}"
    if lacks_encoder(brain.codec, brain.trains, brain.sources):
        command += f" --encoder {brain.hparams.encoder_source}"
    lines.append(f"  {command}")
    if brain.codec.config.own_parts:
        load = '  PretrainedFocalCodec.from_hparams("my_model") in Python'
        return [*lines, load]
    return [
        *lines,
        "  focalcodec resynthesize speech.wav decoded.wav --model my_model"
        ', or FocalCodec.from_pretrained("my_model") in Python',
    ]
