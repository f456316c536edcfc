"""The command that turns a corpus into a dataset of tokens."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

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
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all finished shards, and make those again that are "
            "damaged.",
        ),
    ] = False,
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
    verify : bool
        Whether to make damaged shards again.
    data_root : Path, optional
        What stands for ``{data_root}`` in a manifest.

    Raises
    ------
    FocalCodecError
        If the corpus or the folder cannot be used, or too much fails.
    """
    # Imported here: `focalcodec --help` must not wait for torch, and main
    # imports this module.
    import torch

    from speechbrain_focalcodec.cli.main import load_model
    from speechbrain_focalcodec.corpus.group import find_group
    from speechbrain_focalcodec.corpus.loading import warm_up
    from speechbrain_focalcodec.corpus.report import ProgressBar
    from speechbrain_focalcodec.corpus.run import tokenize as run

    local = int(
        os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))
    )
    if device is None and torch.cuda.is_available():
        device = f"cuda:{local % torch.cuda.device_count()}"
    if not source.exists():
        raise typer.BadParameter(
            f"{source}: no such file or folder", param_hint="SOURCE"
        )
    # Their imports then go on beside the model's.
    if workers != 0:
        warm_up()
    with _stopping():
        interface = load_model(model, device, precision, window, context)
        group = find_group()
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
            verify=verify,
            data_root=data_root,
            group=group,
            report=bar,
        )
    if info is None:
        return
    if bar.hours:
        made = f"{bar.hours:.2f} h in this run, {bar.rate:.1f} times real time"
    elif verify:
        made = "all shards are as they were made"
    else:
        made = "nothing was left to do"
    typer.echo(
        f"{out}: {info.rows} utterances, {info.duration / 3600:.2f} h, "
        f"{info.tokens} tokens in {len(info.shards)} shards; "
        f"{info.failures} failed; {made}"
    )
    if info.failures:
        typer.echo(f"what failed is in {out / 'failures.parquet'}", err=True)


class _Stopped(KeyboardInterrupt):
    """SIGTERM: what batch systems send before they kill."""


@contextmanager
def _stopping() -> Iterator[None]:
    """End in one line when a signal asks for it."""

    def stop(number: int, frame: Any) -> None:
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(
            "stopped; run the same command again to go on: finished shards "
            "are kept",
            err=True,
        )
        number = (
            signal.SIGTERM if isinstance(error, _Stopped) else signal.SIGINT
        )
        raise typer.Exit(128 + number) from error
    finally:
        signal.signal(signal.SIGTERM, before)
