"""The `hyperparams.yaml` of SpeechBrain's from_hparams.

HyperPyYAML runs the code that it names: only for trusted folders.
"""

import filecmp
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperpyyaml import dump_hyperpyyaml
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    FetchSource,
    guess_source,
)
from speechbrain.utils.parameter_transfer import Pretrainer

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.model_files import WEIGHTS_FILE
from speechbrain_focalcodec.parts import ROLES
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["WeightsPretrainer", "own_savedir", "write_hyperparams"]

# File in a savedir that names the hub's model in it.
SOURCE_FILE = "source.txt"

_HYPERPARAMS = """\
# For speechbrain_focalcodec.inference.PretrainedFocalCodec.from_hparams.
# PretrainedFocalCodec.from_pretrained does not read this file.
{parts}
codec: !new:speechbrain_focalcodec.codec.FocalCodec
{codec}
modules:
    codec: !ref <codec>

pretrainer: !new:speechbrain_focalcodec.hyperparams.WeightsPretrainer
    loadables:
        codec: !ref <codec>
    paths:
        codec: model.safetensors
    custom_hooks:
        codec: !name:speechbrain_focalcodec.checkpoint.load_weights
"""


class WeightsPretrainer(Pretrainer):
    """SpeechBrain's Pretrainer that looks for weights in the model's folder.

    SpeechBrain's own looks for a bare file name in the current folder, so an
    exported folder could not be moved. Here it is looked up in the source that
    was given to ``from_hparams``. Arguments are those of SpeechBrain's
    Pretrainer.
    """

    def collect_files(
        self,
        default_source: str | Path | FetchSource | None = None,
        *args,
        **kwargs,
    ) -> dict[str, Path]:
        """Find the files; bare names are looked up in `default_source`."""
        for key, path in self.paths.items():
            if default_source is None or "/" in str(path):
                continue
            if isinstance(default_source, FetchSource):
                kind, folder = default_source
                self.paths[key] = FetchSource(kind, f"{folder}/{path}")
            else:
                self.paths[key] = f"{default_source}/{path}"
        return super().collect_files(default_source, *args, **kwargs)


@contextmanager
def own_savedir(
    source: str | Path | FetchSource,
    hparams_file: str,
    savedir: str | Path | None,
    config: FetchConfig,
) -> Iterator[None]:
    """Raise CheckpointError if a savedir holds another model than the source's.

    SpeechBrain would load the model that it finds there. Nothing is checked
    without a savedir, or if `config` replaces existing files. Load the model
    within the context.
    """
    if savedir is None:
        yield
        return
    savedir = Path(savedir)
    kind, place = guess_source(source)
    label = f"{place}@{config.revision}" if config.revision else str(place)
    local = kind == FetchFrom.LOCAL
    found = savedir / hparams_file
    # Pretrainer's name for the weights of `codec`.
    weights = savedir / "codec.ckpt"
    if config.overwrite or config.allow_updates:
        same = True
    elif local:
        same = all(
            not ours.exists()
            or (theirs.is_file() and filecmp.cmp(ours, theirs, shallow=False))
            for ours, theirs in (
                (found, Path(place) / hparams_file),
                (weights, Path(place) / WEIGHTS_FILE),
            )
        )
    elif (savedir / SOURCE_FILE).is_file():
        same = (savedir / SOURCE_FILE).read_text(encoding="utf-8") == label
    else:
        # Links into the hub's cache name the repository.
        repository = f"models--{place}".replace("/", "--")
        same = not found.exists() or repository in found.resolve().parts
    if not same:
        raise CheckpointError(
            f"{savedir}: holds another model than {label}; give each model a "
            "savedir of its own"
        )
    yield
    if not local:
        atomic_write_text(savedir / SOURCE_FILE, label)


def write_hyperparams(folder: str | Path, codec: FocalCodec) -> Path:
    """Write the ``hyperparams.yaml`` for ``from_hparams``.

    Arguments
    ---------
    folder : str or Path
        A folder that ``codec.save_pretrained`` has written.
    codec : FocalCodec
        The codec in it.

    Returns
    -------
    Path
        The file.
    """
    config, parts = codec.config.to_dict(), []
    for role in ROLES:
        cls = type(getattr(codec, role))
        options = _dump(config[f"{role}_config"])
        parts.append(
            f"{role}: !new:{cls.__module__}.{cls.__qualname__}\n{options}"
        )
    wiring = "".join(f"    {role}: !ref <{role}>\n" for role in ROLES)
    text = _HYPERPARAMS.format(
        parts="\n".join(parts), codec=wiring + _dump({"name": codec.name})
    )
    path = Path(folder) / "hyperparams.yaml"
    atomic_write_text(path, text)
    return path


def _dump(values: dict[str, Any]) -> str:
    """YAML of a table, indented by four spaces."""
    text = io.StringIO()
    dump_hyperpyyaml(values, text)
    lines = text.getvalue().splitlines()
    return "\n".join(f"    {line}" for line in lines if line)
