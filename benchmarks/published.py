"""The published code, from a clone of github.com/lucadellalib/focalcodec.

Its models get the weights of this codec, and so do those of
`speechbrain_focalcodec.compat`, which has the published interface.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import typer

from speechbrain_focalcodec import compat
from speechbrain_focalcodec.codec import FocalCodec

PUBLISHED, COMPAT, OURS = "published", "compat", "this package"


def build_both(codec: FocalCodec, clone: Path) -> dict[str, Any]:
    """Build the published model and that of `compat`, with the same weights.

    The code of the clone is run. Raises `typer.BadParameter` if the folder is
    no clone.
    """
    folder = clone.expanduser().resolve()
    if not (folder / "focalcodec" / "codec.py").is_file():
        raise typer.BadParameter(
            f"{clone} is no clone of lucadellalib/focalcodec"
        )
    sys.path.insert(0, str(folder))
    try:
        package = importlib.import_module("focalcodec")
    finally:
        sys.path.remove(str(folder))
    options = codec.config.model_dump()
    options["decoder_config"].pop("fade", None)  # not published
    models = {}
    for name, module in ((PUBLISHED, package), (COMPAT, compat)):
        model = module.FocalCodec(**options)
        model.load_state_dict(codec.state_dict(), assign=True)
        models[name] = model.eval().requires_grad_(False)
    return models


class PublishedStream:
    """A stream by the published interface, waveform to waveform.

    Arguments
    ---------
    codec : torch.nn.Module
        A causal model of :func:`build_both`.
    """

    def __init__(self, codec: Any):
        self.codec = codec
        self.encoder_state: list[Any] = []
        self.decoder_state: list[Any] = []

    @torch.no_grad()
    def push(self, sig: torch.Tensor) -> torch.Tensor:
        """Resynthesise whole chunks [T]."""
        toks, *self.encoder_state = self.codec.sig_to_toks(
            sig[None], *self.encoder_state, return_state=True
        )
        rec_sig, *self.decoder_state = self.codec.toks_to_sig(
            toks, *self.decoder_state, return_state=True
        )
        return rec_sig[0]
