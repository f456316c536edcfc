"""What windows and their context change in the tokens of long audio."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.ticker import SymmetricalLogLocator
from reporting import (
    label_ticks,
    make_figure,
    markdown_table,
    save_figure,
    show,
)
from speech import Difference, compare_tokens
from tqdm import tqdm

from speechbrain_focalcodec.codec import FocalCodec


@dataclass
class Windowed:
    """What one choice of window and context changes.

    Arguments
    ---------
    model : str
        The model.
    window, context : float
        In seconds.
    difference : Difference
        Over all recordings.
    worst : float
        The share of tokens that differ in the worst recording.
    seconds_encoding : float
        Time that encoding took, over all recordings.
    """

    model: str
    window: float
    context: float
    difference: Difference
    worst: float
    seconds_encoding: float


@torch.inference_mode()
def compare_windows(
    codec: FocalCodec,
    name: str,
    recordings: list[torch.Tensor],
    choices: list[tuple[float, float]],
    batch_size: int | None = None,
) -> list[Windowed]:
    """Encode by windows and compare with a single pass.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    name : str
        What to call it.
    recordings : list of torch.Tensor
        Waveforms [T] at the model's rate.
    choices : list of (float, float)
        Windows and contexts, in seconds.
    batch_size : int, optional
        Windows at once.

    Returns
    -------
    list of Windowed
        For each choice.
    """
    device = next(codec.parameters()).device
    sigs = [sig[None].to(device) for sig in recordings]
    whole = [
        codec.encode(sig, window=None)[0]
        for sig in tqdm(sigs, f"{name}, single passes", disable=None)
    ]
    results = []
    for window, context in tqdm(choices, f"{name}, windows", disable=None):
        start = time.perf_counter()
        windowed = [
            codec.encode(
                sig, window=window, context=context, batch_size=batch_size
            )[0].cpu()
            for sig in sigs
        ]
        seconds = time.perf_counter() - start
        differences = [
            compare_tokens(toks, others, codec.quantizer.dim)
            for toks, others in zip(whole, windowed, strict=True)
        ]
        results.append(
            Windowed(
                model=name,
                window=window,
                context=context,
                difference=sum(differences, Difference()),
                worst=max(item.token_share for item in differences),
                seconds_encoding=seconds,
            )
        )
    return results


def windows_table(results: list[Windowed]) -> str:
    """Write what windows change.

    Arguments
    ---------
    results : list of Windowed
        Of all models.

    Returns
    -------
    str
        Markdown.
    """
    head = [
        *("model", "window (s)", "context (s)", "tokens that differ"),
        *("worst recording", "bits that differ", "encoding (s)"),
    ]
    return markdown_table(
        head,
        [
            [
                row.model,
                f"{row.window:g}",
                f"{row.context:g}",
                show(row.difference.token_share, ".3%"),
                show(row.worst, ".3%"),
                show(row.difference.bit_share, ".4%"),
                show(row.seconds_encoding, ".1f"),
            ]
            for row in results
        ],
    )


def draw_windows(results: list[Windowed], path: Path, title: str) -> None:
    """Draw the share of tokens that differ over the context.

    Arguments
    ---------
    results : list of Windowed
        Of all models: a panel for each, a line for each window.
    path : Path
        The picture.
    title : str
        What was encoded.
    """
    models = list(dict.fromkeys(row.model for row in results))
    shares = [100 * row.difference.token_share for row in results]
    # Logarithmic, but for a strip at the bottom that holds zero.
    lowest = min([share for share in shares if share] or [1.0])
    floor = 10 ** math.floor(math.log10(lowest))
    contexts = sorted({row.context for row in results})
    figure, grid = make_figure(1, len(models), (5.2, 4.0))
    figure.suptitle(title, fontsize="medium")
    for axes, model in zip(grid[0], models, strict=True):
        for window in sorted({row.window for row in results}):
            rows = [
                row
                for row in results
                if (row.model, row.window) == (model, window)
            ]
            axes.plot(
                [row.context for row in rows],
                [100 * row.difference.token_share for row in rows],
                marker="o",
                label=f"window {window:g} s",
            )
        axes.set_yscale("symlog", linthresh=floor)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(
            SymmetricalLogLocator(base=10, linthresh=floor, subs=(1, 2, 5))
        )
        axes.yaxis.set_major_formatter("{x:g}")
        positive = [context for context in contexts if context > 0]
        axes.set_xscale("symlog", linthresh=min(positive or [1.0]))
        label_ticks(axes.xaxis, contexts)
        axes.set_title(model, loc="left")
        axes.set(xlabel="context on each side (s)")
        axes.set_ylabel("tokens that differ from a single pass (%)")
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)
