"""Speaker similarity by WavLM with an x-vector head, as in the papers."""

from pathlib import Path

import torch
from torch import nn

from speechbrain_focalcodec.config import read_json
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.metrics.base import Column
from speechbrain_focalcodec.metrics.hub_models import (
    WEIGHTS_FILES,
    find_model,
    load_model,
    read_any_weights,
    read_sizes,
)
from speechbrain_focalcodec.metrics.speaker import SpeakerSimilarity
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["WavLMSimilarity"]

# Append "@" and a commit to pin it.
BASE_SV = "microsoft/wavlm-base-sv"
# Seconds; the head has a receptive field of a third of a second.
SHORTEST = 0.5


class WavLMSimilarity(SpeakerSimilarity):
    """Similarity by a `WavLMForXVector` of `transformers`.

    Needs the extra ``paper``. The value is None below half a second.

    Arguments
    ---------
    size : str
        ``base`` or ``large``; part of the metric's name.
    source : str or Path, optional
        A repository, ``owner/name`` or ``owner/name@revision``, or a folder
        with `config.json`, `model.safetensors` or `pytorch_model.bin`, and
        `preprocessor_config.json`. By default ``microsoft/wavlm-base-sv``. The
        size ``large`` has no default: it was only published as a pickle of
        another library.
    device : str
        Device to run on.

    Raises
    ------
    CheckpointError, ConfigError
        If the model cannot be loaded or is of another kind.
    """

    def __init__(
        self,
        size: str = "base",
        source: str | Path | None = None,
        device: str = "cpu",
    ):
        super().__init__()
        self.name = f"wavlm-{size}-sv"
        field = f"wavlm_{size}_sv"
        self.columns = (
            Column(
                field,
                f"Similarity, WavLM-{size}-SV (%)",
                "higher",
                field,
                scale=100,
                digits=1,
            ),
        )
        if source is None and size == "base":
            source = BASE_SV
        if source is None:
            raise CheckpointError(
                f"{self.name}: no model of it is known that can be loaded "
                "without executing or unpickling what was downloaded; give "
                "the folder or repository of a WavLMForXVector in the layout "
                "of transformers"
            )
        transformers = import_extra("transformers", "paper")
        folder = find_model(
            source, ["config.json", WEIGHTS_FILES, "preprocessor_config.json"]
        )
        config = read_sizes(
            folder / "config.json", transformers.WavLMConfig, "wavlm"
        )

        def make() -> nn.Module:
            model = transformers.WavLMForXVector(config)
            # Only used in training.
            model.objective = model.classifier = nn.Identity()
            return model

        weights = read_any_weights(folder)
        self.model = load_model(make, weights, folder).to(device)
        self.device = device
        self.normalize = _normalizes(folder / "preprocessor_config.json")

    def embed(self, sig: torch.Tensor) -> torch.Tensor | None:
        if len(sig) < SHORTEST * 16000:
            return None
        # No batches: padding would change the first normalisation.
        sig = sig.to(self.device)
        if self.normalize:
            sig = (sig - sig.mean()) / (sig.var(correction=0) + 1e-7).sqrt()
        return self.model(sig[None]).embeddings[0].float().cpu()


def _normalizes(path: Path) -> bool:
    """True if waveforms are normalised to zero mean and unit variance."""
    value = read_json(path)
    flag = value.get("do_normalize") if isinstance(value, dict) else None
    if not isinstance(flag, bool):
        raise CheckpointError(f"{path}: do_normalize is {flag!r:.80}, no flag")
    return flag
