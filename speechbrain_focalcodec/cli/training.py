"""The command ``plot-training``, which draws the curves of trainings."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["plot_training"]


def plot_training(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Output folders of trainings.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="The picture to write: png, pdf or svg."),
    ] = Path("curves.png"),
    terms: Annotated[
        str,
        typer.Option(
            help="The panels to draw, such as mse,code_usage; all by default."
        ),
    ] = "",
) -> None:
    """Draw the curves of one training, or of several over each other.

    There is a panel for each loss, score, gradient norm and figure, of training
    and of validation, by the optimizer's steps. An existing picture is
    replaced, so that a running training can be followed.
    """
    from speechbrain_focalcodec.training.curves import plot_curves, read_runs

    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise typer.BadParameter(
            f"{out}: must end in .png, .pdf or .svg", param_hint="--out"
        )
    curves = read_runs(runs)
    names = [name.strip() for name in terms.split(",") if name.strip()]
    try:
        plot_curves(out, curves, names)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--terms") from error
    typer.echo(f"{out}: {', '.join(run.name for run in curves)}")
