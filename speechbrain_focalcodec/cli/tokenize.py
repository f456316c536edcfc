"""The command that turns a corpus into a dataset of tokens."""

import os
from pathlib import Path
from typing import Annotated

import typer

from speechbrain_focalcodec.cli.options import (
    Context,
    Device,
    Model,
    Precision,
    Window,
)
from speechbrain_focalcodec.windows import CONTEXT, WINDOW

__all__ = ["tokenize"]


def tokenize(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder of audio (LibriSpeech and LibriTTS are "
            "recognised), a manifest (.json, .jsonl, .csv, .tsv), a Kaldi "
            "folder or wav.scp, or a list of files (.txt)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(help="The dataset's folder: new, or of the same run."),
    ],
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
    window: Window = WINDOW,
    context: Context = CONTEXT,
    batch_duration: Annotated[
        float | None,
        typer.Option(
            help="Seconds of audio encoded together; 20 on a CPU and 240 on a "
            "GPU by default."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that read audio ahead of the model; 1 on a CPU "
            "and up to 8 on a GPU by default, 0 for a thread."
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Items of a shard; 128 to 8192 by default, by the corpus's "
            "size.",
        ),
    ] = None,
    max_failures: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the items that may fail, rounded up to whole "
            "items, before the run stops.",
        ),
    ] = 0.05,
    retry_failures: Annotated[
        bool,
        typer.Option(
            "--retry-failures",
            help="Make those shards again in which items failed.",
        ),
    ] = False,
    lost_after: Annotated[
        float,
        typer.Option(
            min=0,
            help="With several processes: after so many seconds without "
            "progress, the first makes what others have left undone.",
        ),
    ] = 600.0,
    data_root: Annotated[
        Path | None,
        typer.Option(help="What stands for {data_root} in a manifest."),
    ] = None,
) -> None:
    """Turn a corpus into a dataset of tokens (Parquet), once.

    Killed, it goes on where it was when the same command runs again. Start it
    with torchrun or srun, as `-m speechbrain_focalcodec.cli tokenize ...`, to
    share the work among processes: see docs/scale.md.
    \f

    Arguments
    ---------
    source : Path
        The corpus.
    out : Path
        The dataset's folder.
    model : str, optional
        A bundled model's name, a local folder or a hub repository.
    device : str, optional
        Where to put the model; under torchrun, the process's own GPU.
    precision : str, optional
        ``bf16`` or ``int8``.
    window, context : float
        How long audio is cut (s).
    batch_duration : float, optional
        Seconds of audio encoded together.
    workers : int, optional
        Processes that read audio.
    shard_size : int, optional
        Items of a shard.
    max_failures : float
        Share of the items that may fail.
    retry_failures : bool
        Whether to make shards with failures again.
    lost_after : float
        After how long without progress others count as lost (s).
    data_root : Path, optional
        What stands for ``{data_root}`` in a manifest.

    Raises
    ------
    FocalCodecError
        If the corpus or the folder cannot be used, or too much fails.
    """
    # Its own account of a lost process is a page of C++.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Imported here: `focalcodec --help` must not wait for torch, and main
    # imports this module.
    import torch

    from speechbrain_focalcodec.cli.main import load_model
    from speechbrain_focalcodec.corpus.group import (
        find_group,
        local_place,
        together,
    )
    from speechbrain_focalcodec.corpus.report import ProgressBar
    from speechbrain_focalcodec.corpus.run import tokenize as run

    if device is None and torch.cuda.is_available():
        device = f"cuda:{local_place()[0] % torch.cuda.device_count()}"
    group = find_group()
    with together(group):
        if not source.exists():
            raise typer.BadParameter(
                f"{source}: no such file or folder", param_hint="SOURCE"
            )
        interface = load_model(model, device, precision, window, context)
    bar = ProgressBar()
    info = run(
        source,
        out,
        interface,
        batch_duration=batch_duration,
        workers=workers,
        items_per_shard=shard_size,
        max_failures=max_failures,
        retry_failures=retry_failures,
        data_root=data_root,
        group=group,
        lost_after=lost_after,
        report=bar,
    )
    if info is None:
        return
    made = (
        f"{bar.hours:.2f} h in this run, {bar.rate:.1f} times real time"
        if bar.hours
        else "nothing was left to do"
    )
    typer.echo(
        f"{out}: {info.rows} utterances, {info.duration / 3600:.2f} h, "
        f"{info.tokens} tokens in {len(info.shards)} shards; "
        f"{info.failures} failed; {made}"
    )
    if info.failures:
        typer.echo(f"what failed is in {out / 'failures.parquet'}", err=True)
