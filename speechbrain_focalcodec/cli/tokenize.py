"""The command that turns a corpus into a dataset of tokens."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from speechbrain_focalcodec.cli.notes import QUIET, note
from speechbrain_focalcodec.cli.options import (
    BatchDuration,
    Channel,
    Context,
    DataRoot,
    Device,
    Model,
    Precision,
    Strict,
    Window,
    Workers,
)
from speechbrain_focalcodec.cli.stopping import stopping
from speechbrain_focalcodec.errors import FocalCodecError
from speechbrain_focalcodec.jobs.launch import (
    default_processes,
    end_with_parent,
    launch,
)
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW

if TYPE_CHECKING:
    from speechbrain_focalcodec.corpus.layout import DatasetInfo
    from speechbrain_focalcodec.inference import PretrainedFocalCodec
    from speechbrain_focalcodec.jobs.report import ProgressBar

__all__ = ["tokenize"]

_STOPPED = (
    "stopped; run the same command again to go on: finished shards are kept"
)


def tokenize(
    ctx: typer.Context,
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
    batch_duration: BatchDuration = None,
    workers: Workers = None,
    channel: Channel = None,
    strict: Strict = False,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Items of a shard; 8 to 8192 by default, by the corpus's "
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
    lost_after: Annotated[
        float,
        typer.Option(
            min=0,
            help="With several processes: after so many seconds without "
            "progress, the first makes what others have left undone.",
        ),
    ] = 600.0,
    data_root: DataRoot = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that share the work on this machine, each with "
            "the model; one on a GPU and up to 4 on a CPU by default.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a line.")
    ] = False,
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
    share the work among GPUs and machines: see docs/scale.md.
    \f

    Arguments
    ---------
    ctx : typer.Context
        What the command was given.
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
    channel : int, optional
        The channel of audio to read; the mean of all by default.
    strict : bool
        Whether a warning about audio is a failure.
    shard_size : int, optional
        Items of a shard.
    max_failures : float
        Share of the items that may fail.
    retry_failures : bool
        Whether to make shards with failures again.
    verify : bool
        Whether to make damaged shards again.
    lost_after : float
        After how long without progress others count as lost (s).
    data_root : Path, optional
        What stands for ``{data_root}`` in a manifest.
    processes : int, optional
        Processes that share the work on this machine.
    as_json : bool
        Whether to print JSON.
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
    if str(out) == "-":
        raise typer.BadParameter(
            "a dataset is a folder, which standard output cannot take",
            param_hint="OUT",
        )
    if engine not in (None, "ray"):
        raise typer.BadParameter(
            f"must be ray, not {engine}", param_hint="--engine"
        )
    if engine is None:
        if processes is None:
            processes = default_processes(device)
        if processes > 1:
            _check_there(source)  # once, not by each of them
            raise typer.Exit(launch(_again(ctx), processes))
    from speechbrain_focalcodec.jobs.report import ProgressBar

    bar = ProgressBar(quiet=QUIET.get())
    options: dict[str, Any] = {
        "batch_duration": batch_duration,
        "workers": workers,
        "items_per_shard": shard_size,
        "max_failures": max_failures,
        "retry_failures": retry_failures,
        "verify": verify,
        "data_root": data_root,
        "report": bar,
    }
    loading = _Loading(model, precision, window, context, channel, strict)
    # One of several on this machine says what all would say.
    silent = end_with_parent() and os.environ["RANK"] != "0"
    with _stopping(silent, bar):
        if engine is None:
            info = _run(source, out, loading, device, lost_after, options)
        else:
            ray_options = ray_address, ray_workers, ray_gpus, ray_cpus
            info = _run_on_ray(
                source, out, loading, device, ray_options, options
            )
    if info is None:
        return
    if as_json:
        facts = info.model_dump(include={"rows", "tokens", "failures"})
        facts |= {
            "hours": info.duration / 3600,
            "shards": len(info.shards),
            "hours_in_this_run": bar.hours,
            "times_real_time": bar.rate,
        }
        typer.echo(json.dumps({"out": str(out), **facts}, indent=2))
        if info.failures and info.rows == 0:
            raise typer.Exit(1)
        return
    if bar.hours:
        made = f"{bar.hours:.2f} h in this run, {bar.rate:.1f} times real time"
    elif verify:
        made = "all shards are as they were made"
    else:
        made = "nothing was left to do"
    note(
        f"{out}: {info.rows} utterances, {info.duration / 3600:.2f} h, "
        f"{info.tokens} tokens in {len(info.shards)} shards; "
        f"{info.failures} failed; {made}"
    )
    if info.failures:
        note(f"what failed is in {out / 'failures.parquet'}", err=True)
        if info.rows == 0:
            raise typer.Exit(1)


class _Loading(NamedTuple):
    """How the model is loaded and reads audio, but for its device."""

    model: str | None
    precision: str | None
    window: float
    context: float
    channel: int | None
    strict: bool

    def load(self, device: str | None) -> "PretrainedFocalCodec":
        from speechbrain_focalcodec.cli.model import load_model

        return load_model(
            *(self.model, device, self.precision, self.window, self.context),
            *(1, self.channel, self.strict),
        )


def _again(ctx: typer.Context) -> list[str]:
    """This command's line, for one of several processes."""
    given: list[str] = []
    places: list[str] = []
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name or "")
        if parameter.param_type_name == "argument":
            places.append(str(value))
        elif value is True:
            given.append(parameter.opts[0])
        # Zero is a value, though it equals False.
        elif (
            value is not None
            and value is not False
            and parameter.name != "processes"
        ):
            given += [parameter.opts[0], str(value)]
    command = ["-m", "speechbrain_focalcodec.cli", "tokenize"]
    return [*command, *given, "--processes", "1", "--", *places]


def _run(
    source: Path,
    out: Path,
    loading: _Loading,
    device: str | None,
    lost_after: float,
    options: dict[str, Any],
) -> "DatasetInfo | None":
    """Do this process's part."""
    # Its own account of a lost process is a page of C++.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from speechbrain_focalcodec.jobs.loading import warm_up

    # Their imports then go on beside the model's.
    if options["workers"] != 0:
        warm_up()
    import torch

    from speechbrain_focalcodec.corpus.run import tokenize
    from speechbrain_focalcodec.jobs import group as groups

    if device is None and torch.cuda.is_available():
        place, _ = groups.local_place()
        device = f"cuda:{place % torch.cuda.device_count()}"
    group = groups.find_group()
    with groups.together(group):
        _check_there(source)
        interface = loading.load(device)
    return tokenize(
        source, out, interface, group=group, lost_after=lost_after, **options
    )


def _run_on_ray(
    source: Path,
    out: Path,
    loading: _Loading,
    device: str | None,
    ray_options: tuple[Any, ...],
    options: dict[str, Any],
) -> "DatasetInfo":
    """Have Ray's actors do it."""
    from speechbrain_focalcodec.corpus import ray_engine

    _check_there(source)
    if loading.model is not None and Path(loading.model).is_dir():
        # An actor has another working folder.
        loading = loading._replace(model=str(Path(loading.model).absolute()))
    try:
        return ray_engine.tokenize_with_ray(
            source,
            out,
            partial(_load, loading),
            ray_engine.RayOptions(*ray_options),
            device=device,
            **options,
        )
    except ImportError as error:
        raise FocalCodecError(str(error)) from error


def _check_there(source: Path) -> None:
    if not source.exists():
        raise typer.BadParameter(
            f"{source}: no such file or folder", param_hint="SOURCE"
        )


@contextmanager
def _stopping(silent: bool, bar: "ProgressBar") -> Iterator[None]:
    """End in one line, or none, when a signal or the leader asks for it."""
    from speechbrain_focalcodec.jobs.group import LeaderLost

    with stopping(bar, None if silent else _STOPPED):
        try:
            yield
        except LeaderLost as error:
            if not silent:
                raise
            raise typer.Exit(1) from error


def _load(loading: _Loading, device: str | None) -> "PretrainedFocalCodec":
    """Load the model in an actor, where there are no options to blame."""
    try:
        return loading.load(device)
    except typer.BadParameter as error:
        raise FocalCodecError(str(error)) from error
