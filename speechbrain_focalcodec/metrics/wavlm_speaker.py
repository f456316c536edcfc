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

# No commit of it is known here: append "@" and one to pin it.
BASE_SV = "microsoft/wavlm-base-sv"
# Seconds: the head sees a third of a second at a time.
SHORTEST = 0.5


class WavLMSimilarity(SpeakerSimilarity):
    """Similarity by a `WavLMForXVector` of `transformers`.

    Needs the extra ``paper``. The model is one of the hub's, such as
    ``microsoft/wavlm-base-sv``, or a local folder in its layout
    (`config.json`, `model.safetensors` or `pytorch_model.bin`,
    `preprocessor_config.json`). Utterances below half a second have no figure.

    Arguments
    ---------
    size : str
        ``base`` or ``large``: what the metric is called.
    source : str or Path, optional
        Folder or repository, ``owner/name`` or ``owner/name@revision``. The
        size ``large`` has none by default: WavLM-large with a head for
        speakers was published as a pickled checkpoint of another library.
    device : str
        Where it runs.

    Raises
    ------
    CheckpointError, ConfigError
        If the model cannot be had or is none of this kind.

    Example
    -------
    >>> WavLMSimilarity("large")
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.CheckpointError: wavlm-large-sv: ...
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
            # For training on known speakers.
            model.objective = model.classifier = nn.Identity()
            return model

        weights = read_any_weights(folder)
        self.model = load_model(make, weights, folder).to(device)
        self.device = device
        self.normalize = _normalizes(folder / "preprocessor_config.json")

    def embed(self, sig: torch.Tensor) -> torch.Tensor | None:
        if len(sig) < SHORTEST * 16000:
            return None
        # Alone: padding would change what the first norm sees.
        sig = sig.to(self.device)
        if self.normalize:
            sig = (sig - sig.mean()) / (sig.var(correction=0) + 1e-7).sqrt()
        return self.model(sig[None]).embeddings[0].float().cpu()


def _normalizes(path: Path) -> bool:
    """Whether waveforms are brought to zero mean and unit variance."""
    value = read_json(path)
    flag = value.get("do_normalize") if isinstance(value, dict) else None
    if not isinstance(flag, bool):
        raise CheckpointError(f"{path}: do_normalize is {flag!r:.80}, no flag")
    return flag
