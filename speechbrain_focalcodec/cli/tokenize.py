"""The command that turns a corpus into a dataset of tokens."""

import json
import os
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
from speechbrain_focalcodec.jobs.processes import (
    default_processes,
    process_context,
    start_ranks,
)
from speechbrain_focalcodec.jobs.ranks import Rank, cores, find_rank, local_rank
from speechbrain_focalcodec.jobs.report import Counts, ProgressBar
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW

if TYPE_CHECKING:
    from speechbrain_focalcodec.corpus.layout import DatasetInfo
    from speechbrain_focalcodec.inference import PretrainedFocalCodec

__all__ = ["tokenize"]

_STOPPED = (
    "stopped; run the same command again to go on: finished shards are kept"
)
# Imported by all ranks.
_MODULES = (
    "speechbrain_focalcodec.cli.model",
    "speechbrain_focalcodec.corpus.run",
)


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

    The same command finishes a run that was killed. Start it
    with torchrun or srun, as `-m speechbrain_focalcodec.cli tokenize ...`, to
    share the work among GPUs and machines: see docs/scale.md.
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
    if not source.exists():
        raise typer.BadParameter(
            f"{source}: no such file or folder", param_hint="SOURCE"
        )
    bar = ProgressBar(quiet=QUIET.get())
    run = _Run(
        *(source, out, device),
        _Loading(model, precision, window, context, channel, strict),
        {
            "batch_duration": batch_duration,
            "workers": workers,
            "items_per_shard": shard_size,
            "max_failures": max_failures,
            "retry_failures": retry_failures,
            "verify": verify,
            "data_root": data_root,
        },
    )
    info: DatasetInfo | None
    with stopping(bar, _STOPPED):
        if engine == "ray":
            ray_options = ray_address, ray_workers, ray_gpus, ray_cpus
            info = run.with_ray(ray_options, bar)
        elif (number := processes or default_processes(device)) > 1:
            info = run.with_processes(number, bar)
        else:
            info = run.as_rank(find_rank(), bar)
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
    """Options that load the model, apart from its device."""

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


class _Run(NamedTuple):
    """A run; `options` are those of :func:`corpus.run.tokenize`."""

    source: Path
    out: Path
    device: str | None
    loading: _Loading
    options: dict[str, Any]

    def as_rank(
        self, rank: Rank, bar: ProgressBar, **shared: Any
    ) -> "DatasetInfo | None":
        """Make the shards of one rank."""
        if self.options["workers"] != 0:
            process_context()
        import torch

        from speechbrain_focalcodec.corpus.run import shards_left, tokenize

        device = self.device
        if device is None and torch.cuda.is_available():
            place = rank.rank if shared else local_rank()[0]
            device = f"cuda:{place % torch.cuda.device_count()}"
        interface = self.loading.load(device)
        info = tokenize(
            self.source,
            self.out,
            interface,
            **self.options,
            rank=rank,
            report=bar,
            **shared,
        )
        if info is None and not shared:
            left, total = shards_left(self.out)
            note(
                f"rank {rank.rank} of {rank.world_size}: its shards are done; "
                f"{left} of {total} shards are left to other ranks. If one "
                "was lost, run the same command again",
                err=True,
            )
        return info

    def with_processes(
        self, processes: int, bar: ProgressBar
    ) -> "DatasetInfo | None":
        """Make shards as rank 0, beside the other ranks."""
        # Read when torch is imported, here and in the processes.
        threads = str(max(1, cores() // processes))
        os.environ.setdefault("OMP_NUM_THREADS", threads)
        process_context(*_MODULES)
        import speechbrain_focalcodec.cli.model
        import speechbrain_focalcodec.corpus.run  # noqa: F401

        with start_ranks(partial(_run_rank, self), processes) as others:
            return self.as_rank(
                Rank(0, processes), bar, others=others, counts=others.counts
            )

    def with_ray(
        self, ray_options: tuple[Any, ...], bar: ProgressBar
    ) -> "DatasetInfo":
        """Have Ray's actors make shards."""
        from speechbrain_focalcodec.corpus import ray_engine

        loading, model = self.loading, self.loading.model
        if model is not None and Path(model).is_dir():
            # An actor has another working folder.
            loading = loading._replace(model=str(Path(model).absolute()))
        try:
            return ray_engine.tokenize_with_ray(
                *(self.source, self.out, partial(_load, loading)),
                ray_engine.RayOptions(*ray_options),
                device=self.device,
                report=bar,
                **self.options,
            )
        except ImportError as error:
            raise FocalCodecError(str(error)) from error


def _run_rank(run: _Run, rank: Rank, counts: Counts) -> int:
    """Run a rank that :func:`start_ranks` has started."""
    QUIET.set(True)
    bar = ProgressBar(quiet=True)
    try:
        with stopping(bar, None):
            run.as_rank(rank, bar, counts=counts)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def _load(loading: _Loading, device: str | None) -> "PretrainedFocalCodec":
    """Load the model in an actor, where there are no options to blame."""
    try:
        return loading.load(device)
    except typer.BadParameter as error:
        raise FocalCodecError(str(error)) from error
