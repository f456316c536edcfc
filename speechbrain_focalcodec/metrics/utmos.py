"""UTMOS: naturalness as listeners would rate it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from speechbrain_focalcodec.checkpoint import Weights, read_weights
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.metrics.base import Column, Metric, Row, Sample
from speechbrain_focalcodec.metrics.hub_models import (
    find_model,
    load_checkpoint,
    load_model,
    read_sizes,
    tensors_of,
)
from speechbrain_focalcodec.metrics.utmos_model import Utmos22, rename_utmos
from speechbrain_focalcodec.metrics.values import as_figure, is_measurable
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Utmos"]

# Where the package `utmos` of PyPI has the checkpoint from. No commit of it is
# known here: append "@" and one to pin it.
REPOSITORY = "mosnets/utmos"
# The first that is there is taken.
FILES = ("model.safetensors", "model.ckpt")
# Samples that the first layers of wav2vec 2.0 see at a time.
SHORTEST = 400


class Utmos(Metric):
    """UTMOS (the strong learner of UTMOS22) of the output, 1 to 5.

    The network is this package's own, around the wav2vec 2.0 of
    `transformers` (extra ``paper``). Weights are read without executing
    anything: from safetensors, or from the published checkpoint, a pickle of
    which tensors alone are taken.

    Arguments
    ---------
    source : str or Path, optional
        A file of weights, a folder with `model.safetensors` or `model.ckpt`,
        or a hub repository, ``owner/name`` or ``owner/name@revision``. A
        folder may have a `config.json` with the sizes of its wav2vec 2.0;
        those of the base model are the default.
    device : str
        Where it runs.

    Raises
    ------
    CheckpointError
        If the weights cannot be had, or not without executing code.

    Example
    -------
    >>> Utmos("nowhere/utmos.pt")
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.CheckpointError: nowhere/utmos.pt...
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
    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        return [{"utmos": self._measure(sample.output)} for sample in samples]

    def _measure(self, sig: torch.Tensor) -> float | None:
        if not is_measurable(sig) or len(sig) < SHORTEST:
            return None
        # Alone: padding would change what the first norm sees.
        return as_figure(self.model(sig[None].to(self.device))[0])


def _read(path: Path) -> Weights:
    """Read the tensors of a checkpoint, without what is beside them."""
    if path.suffix == ".safetensors":
        return read_weights(path)
    # One of Lightning holds objects of its training too.
    content = load_checkpoint(path, replace_objects=True)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    return tensors_of(content, path)
