"""The published implementation beside this one, in turns.

It comes from a clone of the user's of github.com/lucadellalib/focalcodec. Both
have the same sizes and random weights, and so has the same interface on this
package's modules (`compat`). One runs after the other, again and again, so
that what else the machine does meets all of them.
"""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from chunks import full_window
from measuring import time_runs
from reporting import markdown_table
from systems import make_noise

from speechbrain_focalcodec import compat
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.streaming import StreamingResynthesizer
from speechbrain_focalcodec.streaming.latency import Spread

NAMES = ("published", "compat", "this codec")


def make_all(codec: FocalCodec, path: Path) -> dict[str, Any]:
    """Build the published model, and its interface here, like a codec.

    Arguments
    ---------
    codec : FocalCodec
        With the parts that the published package has.
    path : Path
        A clone of the published repository.

    Returns
    -------
    dict
        The models by the first two of `NAMES`, with the weights of `codec`.

    Raises
    ------
    typer.BadParameter
        If there is no such clone.
    """
    folder = path.expanduser().resolve()
    if not (folder / "focalcodec" / "codec.py").is_file():
        raise typer.BadParameter(
            f"{path} is no clone of lucadellalib/focalcodec"
        )
    sys.path.insert(0, str(folder))
    try:
        package = importlib.import_module("focalcodec")
    finally:
        sys.path.remove(str(folder))
    options = codec.config.model_dump()
    options["decoder_config"].pop("fade", None)  # not published
    models = {}
    for name, classes in zip(NAMES, (package, compat), strict=False):
        model = classes.FocalCodec(**options)
        model.load_state_dict(codec.state_dict(), assign=True)
        models[name] = model.eval().requires_grad_(False)
    return models


def in_turns(
    runs: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Time several things in turns, after one run of each to warm up.

    Arguments
    ---------
    runs : dict
        What to run, by name.
    repeats : int
        Turns.
    device : torch.device
        Where they run.

    Returns
    -------
    dict
        Seconds of each run, by name.
    """
    walls: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            walls[name] += time_runs(run, 1, device)
    return {name: times[1:] for name, times in walls.items()}


@torch.no_grad()
def compare_speed(
    codec: FocalCodec,
    path: Path,
    seconds: list[float],
    repeats: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Time encoding and decoding of one item.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    path : Path
        See :func:`make_all`.
    seconds : list of float
        Lengths of the audio.
    repeats : int
        Turns.
    device : torch.device
        Where they run.

    Returns
    -------
    list of dict
        Stage, seconds of audio, and the walls (s) by name.
    """
    codec = codec.eval().requires_grad_(False)
    models = {**make_all(codec, path), NAMES[2]: codec}
    for model in models.values():
        model.to(device)
    rows = []
    for length in seconds:
        sig = make_noise(length, 1, codec.sample_rate_input, device)
        toks = codec.sig_to_toks(sig)
        for stage, theirs, x in (
            ("encode", "sig_to_toks", sig),
            ("decode", "toks_to_sig", toks),
        ):
            runs = {
                name: partial(getattr(model, theirs), x)
                for name, model in models.items()
            }
            # Windows, checks and all.
            runs[NAMES[2]] = partial(getattr(codec, stage), x)
            walls = in_turns(runs, repeats, device)
            rows.append({"stage": stage, "seconds": length, "walls": walls})
    return rows


class PositionalStream:
    """Waveform to waveform, by the published interface.

    Arguments
    ---------
    codec : FocalCodec
        A causal model with the published interface.
    """

    def __init__(self, codec: Any):
        self.codec = codec
        self.encoding: list[Any] = []
        self.decoding: list[Any] = []

    def push(self, sig: torch.Tensor) -> torch.Tensor:
        """One chunk [T] of the waveform."""
        toks, *self.encoding = self.codec.sig_to_toks(
            sig[None], *self.encoding, return_state=True
        )
        rec_sig, *self.decoding = self.codec.toks_to_sig(
            toks, *self.decoding, return_state=True
        )
        return rec_sig[0]


@torch.no_grad()
def compare_chunks(
    codec: FocalCodec, path: Path, num_chunks: int, warm: int
) -> dict[str, list[float]]:
    """Time chunks of three streams in turns, once the windows are full.

    Arguments
    ---------
    codec : FocalCodec
        A causal model, on the CPU.
    path : Path
        See :func:`make_all`.
    num_chunks : int
        How many.
    warm : int
        Chunks that do not count, after the windows are full.

    Returns
    -------
    dict
        Seconds of each chunk, by name.
    """
    streams: dict[str, Any] = {
        name: PositionalStream(model)
        for name, model in make_all(codec, path).items()
    }
    streams[NAMES[2]] = StreamingResynthesizer(codec)
    size = codec.chunk_length or 1
    warm += -(-full_window(codec) * codec.encoder.hop_length // size)
    device, rate = torch.device("cpu"), codec.sample_rate_input
    duration = (warm + num_chunks) * size / rate
    walls: dict[str, list[float]] = {name: [] for name in streams}
    for chunk in make_noise(duration, 1, rate, device)[0].split(size):
        for name, stream in streams.items():
            walls[name] += time_runs(partial(stream.push, chunk), 1, device)
    return {name: times[warm:] for name, times in walls.items()}


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Write what :func:`compare_speed` gave: the fastest of all turns.

    Arguments
    ---------
    rows : list of dict
        Of :func:`compare_speed`.

    Returns
    -------
    str
        Markdown.
    """
    lines = []
    for row in rows:
        best = [min(row["walls"][name]) for name in NAMES]
        ratios = [f"{best[0] / wall:.2f}" for wall in best[1:]]
        lines.append(
            [f"{row['stage']}, {row['seconds']:g} s"]
            + [f"{wall:.3f}" for wall in best]
            + ratios
        )
    head = ["", *(f"{name} (s)" for name in NAMES)]
    return markdown_table(
        head + [f"{name}: times" for name in NAMES[1:]], lines
    )


def chunk_table(walls: dict[str, list[float]]) -> str:
    """Write what :func:`compare_chunks` gave.

    Arguments
    ---------
    walls : dict
        Of :func:`compare_chunks`.

    Returns
    -------
    str
        Markdown.
    """
    rows = []
    for name, times in walls.items():
        spread = Spread.of(times, 1000)
        assert spread is not None
        rows.append(
            [name, f"{1000 * min(times):.1f}"]
            + [f"{x:.1f}" for x in (spread.p50, spread.p95, spread.max)]
        )
    return markdown_table(
        ["one chunk", "fastest (ms)", "p50 (ms)", "p95", "max"], rows
    )
