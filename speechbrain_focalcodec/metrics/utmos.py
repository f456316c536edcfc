"""UTMOS: predicted naturalness."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from speechbrain_focalcodec.checkpoint import Weights, read_weights
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.metrics.base import Column, Sample, ScoreMetric
from speechbrain_focalcodec.metrics.hub_models import (
    find_model,
    load_checkpoint,
    load_model,
    read_sizes,
    tensors_of,
)
from speechbrain_focalcodec.metrics.utmos_model import Utmos22, rename_utmos
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Utmos"]

# Source of the checkpoint in PyPI's package `utmos`. Append "@" and a commit
# to pin it.
REPOSITORY = "mosnets/utmos"
# In order of preference.
FILES = ("model.safetensors", "model.ckpt")
# Receptive field of wav2vec 2.0's convolutions in samples.
SHORTEST = 400


class Utmos(ScoreMetric):
    """UTMOS (strong learner of UTMOS22) of the output, 1 to 5.

    The network is implemented here, around the wav2vec 2.0 of `transformers`
    (extra ``paper``). Weights are read without executing code, from
    safetensors or as the tensors of the published checkpoint.

    Arguments
    ---------
    source : str or Path, optional
        A file of weights, a folder with `model.safetensors` or `model.ckpt`,
        or a hub repository, ``owner/name`` or ``owner/name@revision``. A
        `config.json` in the folder has the sizes of the wav2vec 2.0; by
        default those of the base model.
    device : str
        Device to run on.

    Raises
    ------
    CheckpointError
        If the weights are not found, or reading them would execute code.
    """

    name = "utmos"
    converts = True
    columns = (Column("utmos", "UTMOS", "higher", "utmos"),)

    def __init__(self, source: str | Path | None = None, device: str = "cpu"):
        path = Path(source or REPOSITORY).expanduser()
        if not path.is_file():
            if path.suffix in (".pt", ".ckpt", ".safetensors"):
                raise CheckpointError(f"{path}: not found")
            folder = find_model(source or REPOSITORY, [FILES])
            found = [folder / n for n in FILES if (folder / n).is_file()]
            if not found:
                raise CheckpointError(f"{folder}: has no {' or '.join(FILES)}")
            path = found[0]
        transformers = import_extra("transformers", "paper")
        sizes = path.parent / "config.json"
        if sizes.is_file():
            config = read_sizes(sizes, transformers.Wav2Vec2Config, "wav2vec2")
        else:
            config = transformers.Wav2Vec2Config(
                mask_time_prob=0.0, attn_implementation="eager"
            )
        weights = rename_utmos(_read(path), path)
        self.model = load_model(
            lambda: Utmos22(transformers.Wav2Vec2Model(config), weights),
            weights,
            path,
        ).to(device)
        self.device = device

    @torch.inference_mode()
    def scores(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._measure(sample.output) for sample in samples]

    def _measure(self, sig: torch.Tensor) -> float | None:
        if len(sig) < SHORTEST:
            return None
        # No batches: padding would change the first normalisation.
        return float(self.model(sig[None].to(self.device))[0])


def _read(path: Path) -> Weights:
    """Read the tensors of a checkpoint and ignore other objects."""
    if path.suffix == ".safetensors":
        return read_weights(path)
    # Checkpoints of Lightning also hold objects of the training.
    content = load_checkpoint(path, replace_objects=True)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    return tensors_of(content, path)
