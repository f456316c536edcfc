"""The command that turns a corpus into a dataset of tokens."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechbrain_focalcodec.cli.options import (
    Context,
    Device,
    Model,
    Precision,
    Window,
)
from speechbrain_focalcodec.errors import FocalCodecError
from speechbrain_focalcodec.windows import CONTEXT, WINDOW

if TYPE_CHECKING:
    from speechbrain_focalcodec.inference import PretrainedFocalCodec

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
    engine: Annotated[
        str | None,
        typer.Option(
            help="ray: on a Ray cluster; otherwise here, or as torchrun or "
            "srun has started it."
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="The cluster, such as auto or ray://head:10001; one of this "
            "machine's own when not given."
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Models at work; as many as fit by default."),
    ] = None,
    ray_gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs of each, a part of one too; 1 by default if there are "
            "any.",
        ),
    ] = None,
    ray_cpus: Annotated[
        float, typer.Option(min=0, help="Cores, and threads, of each.")
    ] = 2.0,
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
    engine : str, optional
        ``ray``, or what the environment says.
    ray_address : str, optional
        The Ray cluster.
    ray_workers : int, optional
        Number of Ray actors.
    ray_gpus, ray_cpus : float
        What each of them takes.

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
    from speechbrain_focalcodec.corpus import group as groups
    from speechbrain_focalcodec.corpus import ray_engine
    from speechbrain_focalcodec.corpus.report import ProgressBar
    from speechbrain_focalcodec.corpus.run import tokenize as run

    if engine not in (None, "ray"):
        raise typer.BadParameter(
            f"must be ray, not {engine}", param_hint="--engine"
        )
    bar = ProgressBar()
    options: dict[str, Any] = {
        "batch_duration": batch_duration,
        "workers": workers,
        "items_per_shard": shard_size,
        "max_failures": max_failures,
        "retry_failures": retry_failures,
        "data_root": data_root,
        "report": bar,
    }
    group: groups.Group = groups.Alone()
    if engine is None:
        if device is None and torch.cuda.is_available():
            place, _ = groups.local_place()
            device = f"cuda:{place % torch.cuda.device_count()}"
        group = groups.find_group()
    with groups.together(group):
        if not source.exists():
            raise typer.BadParameter(
                f"{source}: no such file or folder", param_hint="SOURCE"
            )
        if engine is None:
            interface = load_model(model, device, precision, window, context)
    if engine is None:
        info = run(
            source,
            out,
            interface,
            group=group,
            lost_after=lost_after,
            **options,
        )
    else:
        if model is not None and Path(model).is_dir():
            # An actor has another working folder.
            model = str(Path(model).absolute())
        try:
            info = ray_engine.tokenize_with_ray(
                source,
                out,
                partial(_load, model, precision, window, context),
                ray_engine.RayOptions(
                    ray_address, ray_workers, ray_gpus, ray_cpus
                ),
                device=device,
                **options,
            )
        except ImportError as error:
            raise FocalCodecError(str(error)) from error
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


def _load(
    model: str | None,
    precision: str | None,
    window: float,
    context: float,
    device: str | None,
) -> "PretrainedFocalCodec":
    """Load the model in an actor, where there are no options to blame."""
    from speechbrain_focalcodec.cli.main import load_model

    try:
        return load_model(model, device, precision, window, context)
    except typer.BadParameter as error:
        raise FocalCodecError(str(error)) from error
