"""The `hyperparams.yaml` with which SpeechBrain's from_hparams loads a model.

HyperPyYAML executes what it names: it is for folders that one trusts.
"""

import io
from pathlib import Path

from hyperpyyaml import dump_hyperpyyaml
from speechbrain.utils.fetching import FetchSource
from speechbrain.utils.parameter_transfer import Pretrainer

from speechbrain_focalcodec.atomic import atomic_write_text
from speechbrain_focalcodec.codec import FocalCodec

__all__ = ["WeightsPretrainer", "write_hyperparams"]

_HYPERPARAMS = """\
# For speechbrain_focalcodec.inference.PretrainedFocalCodec.from_hparams.
# PretrainedFocalCodec.from_pretrained does not read this file.
codec: !new:speechbrain_focalcodec.codec.FocalCodec
{arguments}
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
    """SpeechBrain's pretrainer, looking for weights where the model is.

    SpeechBrain's own takes a bare file name in `paths` for a file of the
    current folder, so an exported folder could not be moved. Here it is a
    file of the source that ``from_hparams`` was given.

    Arguments
    ---------
    *args : tuple
        As for SpeechBrain's Pretrainer.
    **kwargs : dict
        As for SpeechBrain's Pretrainer.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/offline_50hz")
    >>> pretrainer = WeightsPretrainer(
    ...     loadables={"codec": codec}, paths={"codec": "model.safetensors"}
    ... )
    >>> found = pretrainer.collect_files("tests/parity/offline_50hz")
    >>> found["codec"].name
    'model.safetensors'
    """

    def collect_files(
        self,
        default_source: str | Path | FetchSource | None = None,
        *args,
        **kwargs,
    ) -> dict[str, Path]:
        """Find the files, those with a bare name in `default_source`.

        Arguments
        ---------
        default_source : str or Path or FetchSource, optional
            The model's folder or hub repository.
        *args : tuple
            As for SpeechBrain's Pretrainer.
        **kwargs : dict
            As for SpeechBrain's Pretrainer.

        Returns
        -------
        dict
            The local path of each loadable's weights.
        """
        for key, path in self.paths.items():
            if default_source is None or "/" in str(path):
                continue
            if isinstance(default_source, FetchSource):
                kind, folder = default_source
                self.paths[key] = FetchSource(kind, f"{folder}/{path}")
            else:
                self.paths[key] = f"{default_source}/{path}"
        return super().collect_files(default_source, *args, **kwargs)


def write_hyperparams(folder: str | Path, codec: FocalCodec) -> Path:
    """Write the ``hyperparams.yaml`` that ``from_hparams`` needs.

    Arguments
    ---------
    folder : str or Path
        A folder that ``codec.save_pretrained`` has written.
    codec : FocalCodec
        The codec saved in it.

    Returns
    -------
    Path
        The file written.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> codec = FocalCodec.from_pretrained("tests/parity/offline_50hz")
    >>> codec.save_pretrained(folder)
    >>> write_hyperparams(folder, codec).name
    'hyperparams.yaml'
    """
    arguments = io.StringIO()
    dump_hyperpyyaml(
        {
            "config": codec.config.to_dict(),
            "name": codec.name,
        },
        arguments,
    )
    lines = arguments.getvalue().splitlines()
    indented = "\n".join(f"    {line}" for line in lines if line)
    path = Path(folder) / "hyperparams.yaml"
    atomic_write_text(path, _HYPERPARAMS.format(arguments=indented))
    return path
