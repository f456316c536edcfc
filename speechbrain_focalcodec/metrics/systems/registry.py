"""Makes the codec of an evaluation from its name."""

import re
from pathlib import Path

import torch

from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.hub import is_repository
from speechbrain_focalcodec.metrics.plugins import is_plugin, make_plugin
from speechbrain_focalcodec.metrics.systems.base import System
from speechbrain_focalcodec.metrics.systems.codec2 import MODES, Codec2
from speechbrain_focalcodec.metrics.systems.focalcodec import FocalCodecSystem
from speechbrain_focalcodec.metrics.systems.opus import Opus
from speechbrain_focalcodec.metrics.systems.original import ORIGINAL, Original
from speechbrain_focalcodec.metrics.systems.transformers import (
    Dac,
    Encodec,
    Mimi,
    TransformersSystem,
)

__all__ = ["FORMS", "make_system"]

# Possible names, for help and errors.
FORMS = f"""\
  MODEL               a FocalCodec: bundled name, folder, hub repository or
                      REPOSITORY@REVISION
  feats:MODEL         without quantization: the bound for a perfect quantizer
  original            the original speech
  codec2:MODE         MODE: {", ".join(MODES)}
  codec2:MODE:raw     without removal of the codec's delay
  opus:KBPS           KBPS: 6 to 256
  encodec:KBPS        KBPS: 1.5, 3, 6, 12, 24
  dac:CODEBOOKS       CODEBOOKS: 1 to 12
  mimi:CODEBOOKS      CODEBOOKS: 1 to 32
  encodec:FOLDER@KBPS, dac:REPOSITORY@CODEBOOKS,
  mimi:REPOSITORY@REVISION@CODEBOOKS, ...
                      other weights
  MODULE:NAME         your own adapter from your Python path: a System, or a
                      function that makes one; this executes its code
  LABEL=...           any of these, called LABEL in tables"""

PEERS: dict[str, type[TransformersSystem]] = {
    "encodec": Encodec,
    "dac": Dac,
    "mimi": Mimi,
}
RAW = "raw"
LABEL = re.compile(r"([^\W_][\w .+-]*)=(.+)", re.DOTALL)


def make_system(spec: str, device: str | torch.device | None = None) -> System:
    """Make a codec from its name.

    Arguments
    ---------
    spec : str
        One of `FORMS`. Write ``./NAME`` for a folder with such a name.
    device : str or torch.device, optional
        Device of models; by default the CPU. Passed on to a user's adapter if
        it has an argument ``device``.

    Returns
    -------
    System
        The codec.

    Raises
    ------
    FocalCodecError
        If a tool is not installed, or a model cannot be loaded.
    ImportError
        If a library or an adapter's module is missing.
    ValueError
        If the name is unknown, or is also the name of a folder.

    Example
    -------
    >>> make_system("focalcodec_mini_50hz").codebook_size
    8192
    >>> make_system("untouched=original").name
    'untouched'
    """
    if not spec.strip():
        raise _unknown(repr(spec))
    labelled = LABEL.fullmatch(spec)
    if labelled and not Path(spec).exists():
        system = make_system(labelled[2], device)
        system.name = labelled[1]
        return system
    kind, colon, rest = spec.partition(":")
    known = spec == ORIGINAL or (
        colon and kind in ("codec2", "opus", "feats", *PEERS)
    )
    if known and Path(spec).exists():
        raise ValueError(
            f"{spec}: may be the codec or the folder of this name; write "
            f"./{spec} for the folder"
        )
    if spec == ORIGINAL:
        return Original()
    if known and not rest:
        raise _unknown(spec)
    if known and kind == "codec2":
        mode, more, raw = rest.partition(":")
        if more and raw != RAW:
            raise _unknown(spec)
        return Codec2(mode, raw=bool(more))
    if known and kind == "opus":
        return Opus(_number(spec, rest))
    if known and kind == "feats":
        return _make_focalcodec(rest, device, feats_only=True)
    if known:
        source, _, setting = rest.rpartition("@")
        source, revision = _split_revision(source)
        return PEERS[kind](
            _number(spec, setting),
            source or None,
            revision=revision,
            device=device,
        )
    if is_plugin(spec) and not Path(spec).exists():
        # mypy rejects abstract classes as types.
        return make_plugin(spec, System, device)  # type: ignore[type-abstract]
    return _make_focalcodec(spec, device)


def _make_focalcodec(
    spec: str, device: str | torch.device | None, feats_only: bool = False
) -> System:
    source, revision = _split_revision(spec)
    try:
        return FocalCodecSystem(
            source, revision=revision, device=device, feats_only=feats_only
        )
    except CheckpointError as error:
        if Path(spec).expanduser().exists() or is_repository(source):
            raise
        raise _unknown(spec) from error


def _split_revision(source: str) -> tuple[str, str | None]:
    """Split the revision from a repository's name."""
    repository, at, revision = source.partition("@")
    if at and is_repository(repository) and not Path(source).exists():
        return repository, revision
    return source, None


def _number(spec: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _unknown(spec) from None


def _unknown(spec: str) -> ValueError:
    return ValueError(
        f"{spec}: no codec of this name; possible names:\n{FORMS}"
    )
