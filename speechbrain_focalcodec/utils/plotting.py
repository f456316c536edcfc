"""Plots signals and features."""

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["plot_features", "plot_spectrograms"]

WINDOW_S = 0.032
HOP_S = 0.008
RANGE_DB = 80.0


def _level(sig: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Spectrogram in dB relative to a full-scale constant, at any rate."""
    window = torch.hann_window(round(WINDOW_S * sample_rate))
    spectrum = torch.stft(
        # NaN of a broken model shows as silence.
        torch.nan_to_num(sig.detach().cpu().float(), posinf=0.0, neginf=0.0),
        n_fft=len(window),
        hop_length=round(HOP_S * sample_rate),
        window=window,
        pad_mode="constant",
        return_complex=True,
    )
    return 20 * torch.log10((spectrum.abs() / window.sum()).clamp(min=1e-9))


def plot_spectrograms(
    path: str | Path,
    sigs: Mapping[str, torch.Tensor],
    sample_rate: int | Mapping[str, int],
) -> None:
    """Draw spectrograms below each other, in one colour scale.

    The axes are in s and kHz, the colours in dB below the maximum of all
    signals. No global state of matplotlib is used.

    Arguments
    ---------
    path : str or Path
        The picture to write (png, pdf or svg, by its suffix).
    sigs : Mapping[str, torch.Tensor]
        Signals [T] by title; lengths may differ.
    sample_rate : int or Mapping[str, int]
        Sample rate (Hz), of all signals or by title.

    Raises
    ------
    ValueError
        If there is no signal, or one is empty or not [T].
    """
    if not sigs:
        raise ValueError("No signal to plot")
    for title, sig in sigs.items():
        if sig.ndim != 1 or len(sig) == 0:
            raise ValueError(
                f"The signal '{title}' must have shape [T], not "
                f"{list(sig.shape)}"
            )
    rates = (
        dict.fromkeys(sigs, sample_rate)
        if isinstance(sample_rate, int)
        else sample_rate
    )
    pictures = {title: _level(sig, rates[title]) for title, sig in sigs.items()}
    loudest = max(float(picture.max()) for picture in pictures.values())
    _draw(
        path,
        {title: picture - loudest for title, picture in pictures.items()},
        {title: len(sig) / rates[title] for title, sig in sigs.items()},
        {title: rates[title] / 2000 for title in sigs},
        ("frequency (kHz)", "level (dB)"),
        (-RANGE_DB, 0),
    )


def plot_features(
    path: str | Path, feats: Mapping[str, torch.Tensor], frame_rate: float
) -> None:
    """Draw features [T, C], by title, below each other, in one colour scale.

    `path` is a picture as in :func:`plot_spectrograms`; `frame_rate` is in
    frames per second.
    """
    values = torch.cat([x.flatten() for x in feats.values()]).float()
    low, high = torch.quantile(values[:: 1 + len(values) // 10**6], _RANGE)
    _draw(
        path,
        {title: x.detach().cpu().float().T for title, x in feats.items()},
        {title: len(x) / frame_rate for title, x in feats.items()},
        {title: x.shape[1] for title, x in feats.items()},
        ("feature", "value"),
        (float(low), float(high)),
    )


# Single outliers should not darken a whole picture.
_RANGE = torch.tensor([0.001, 0.999])


def _draw(
    path: str | Path,
    pictures: Mapping[str, torch.Tensor],
    durations: Mapping[str, float],
    heights: Mapping[str, float],
    labels: tuple[str, str],
    limits: tuple[float, float],
) -> None:
    """Write matrices [height, time] as one picture."""
    figure = Figure(figsize=(9, 1 + 2.4 * len(pictures)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(pictures), sharex=True, sharey=True, squeeze=False
    )
    for axes, (title, picture) in zip(
        grid[:, 0], pictures.items(), strict=True
    ):
        image = axes.imshow(
            picture.numpy(),
            aspect="auto",
            origin="lower",
            cmap="magma",
            extent=(0, durations[title], 0, heights[title]),
            vmin=limits[0],
            vmax=limits[1],
        )
        axes.set_title(title, loc="left")
        axes.set_ylabel(labels[0])
    axes.set_xlabel("time (s)")
    axes.set_xlim(0, max(durations.values()))
    axes.set_ylim(0, max(heights.values()))
    figure.colorbar(image, ax=grid[:, 0], label=labels[1], pad=0.01)

    path = Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=110)
